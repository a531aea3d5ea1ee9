# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One bill and one applicant, seen by each of them
#
# A hospital's bill was paid by two insurers. An applicant did not declare an illness that the public
# insurer knows. Each payer sees its half, and may not show the other its table. What can they tell
# each other, and what does each of them, the coordinator and the supervisor then know?
#
# The market is simulated, so we know where to look.

# %%
import tempfile
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pandas as pd

from federated.link import ring
from federated.link.charter import LinkCharter
from federated.link.duplicates import compared, ring_terms
from federated.link.keys import payer_claims
from federated.link.planted import payer_tables, twice_detected
from lab.market.make import make

pd.set_option("display.max_colwidth", 110)
home = Path(tempfile.mkdtemp())
market = make(home / "market", persons=20_000, seed=7).folder
shipped = LinkCharter.read()
caps = {"cap": 4_000, "caps": {"public": 100_000}, "key": shipped.key[:2]}
charter = shipped.model_copy(update=caps)
tables = payer_tables(market, charter)
pd.DataFrame({"key": k.name, "same in": ", ".join(k.columns)} for k in charter.key)

# %% [markdown]
# ## The bill, which is in three tables
#
# The truth, which nobody has: one bill, paid by the fund and twice more.

# %%
truth = pd.read_parquet(market / "truth" / "claims.parquet").set_index("claim")
everything = pd.concat(tables.values(), ignore_index=True)
everything["typology"] = truth.loc[everything["claim"], "typology"].to_numpy()
cases = everything[everything["typology"] == "double_reimbursement"]
bill = cases[cases.duplicated(["person", "admission_day", "claimed"], keep=False)].iloc[0]
columns = ["payer", "invoice", "provider", "admission_day", "billed", "claimed", "paid"]
same = everything["person"].eq(bill["person"]) & everything["billed"].eq(bill["billed"])
everything.loc[same, columns]

# %% [markdown]
# ## What is sent round
#
# Each payer makes a point of a curve from its key, and multiplies it by a secret. This is what the next
# payer sees of the claim; tomorrow it would be another.

# %%
payer = bill["payer"]
claims = payer_claims(tables[payer], charter, payer)
terms = ring_terms(charter.model_copy(update={"cap": 1, "caps": {}}), tuple(tables), bytes(32))
text = claims.batches[0].texts[claims.batches[0].place[tables[payer]["claim"].eq(bill["claim"])][0]]
nights = [ring.start(terms, payer, [[text], []], seed * 32)[1]["0"].hex() for seed in (b"a", b"b")]
pd.Series({"the key, at home": text.decode(), "sent tonight": nights[0], "tomorrow": nights[1]})

# %% [markdown]
# ## What the insurers are told
#
# After all payers and the coordinator have multiplied, equal keys are equal. Each payer is told of its
# own claims: another paid this one, by this key, and, because this charter says so, who. Of all else,
# nothing.

# %%
comparison = compared(tables, charter)
twice = comparison.payers[payer].matches
pd.concat([tables[payer][columns].iloc[twice["row"]].reset_index(drop=True), twice], axis=1)

# %% [markdown]
# ## What the coordinator counts
#
# Random names and how many of them two payers share. To try a guess it would need every payer's help.

# %%
comparison.counts

# %% [markdown]
# ## What it is worth
#
# No model of one payer's claims sees this fraud: average precision 0.0023, which is chance.

# %%
scores = twice_detected(market, tables, comparison)
rows = [vars(score) | {"recall": score.recall, "precision": score.precision} for score in scores]
pd.DataFrame(rows).set_index("name").round(3)

# %% [markdown]
# ## The applicant
#
# She claims for a condition that her policy asked about and she did not declare. She signs at a desk: one
# question, to this fund, about this group, before this day, once. The desk blinds the question.

# %%
from federated.link.consent import consented_unseen
from federated.link.disclosure import DESK, DisclosureTrial, claims_to_ask_about

logs, stack = home / "logs", ExitStack()
trial = DisclosureTrial(market, charter.condition, logs, stack)
asked = pd.concat(
    [
        claims_to_ask_about(market, p, charter.condition.groups).assign(payer=p)
        for p in list(tables)[:-1]
    ]
)
concealed = asked[truth.loc[asked["claim"], "typology"].to_numpy() == "non_disclosure"]
claim = concealed.iloc[0]
today = claim["day"]
wanted = {
    "insurer": claim["payer"],
    "fund": "public",
    "purpose": "settle a claim",
    "group": claim["group"],
}
wanted |= {"before": claim["before"], "expires": today + timedelta(days=7)}
token, question = consented_unseen(
    trial.identities[DESK], DESK, wanted, str(claim["person"]), trial.secret, b"b" * 32
)
pd.Series(token.model_dump(mode="json")).str.slice(0, 40)

# %% [markdown]
# ## What the insurer reads, and what the fund has in its log
#
# The insurer: yes, no, or refer; never a history, never a day. The fund: who asked, what for, which group;
# not about whom, and not what came of it.

# %%
side = trial.insurers[claim["payer"]]
side.asks(token)
reply, fund_receipt = trial.fund.answer(token, claim["payer"], today, question)
answer, own_receipt = side.read(token, reply, today, str(claim["person"]), b"b" * 32)
pd.DataFrame([fund_receipt.model_dump(), own_receipt.model_dump()]).set_index("by")[
    ["group", "before", "answer"]
]

# %%
from lab.audit.log_format import entries, read_lines

lines = [
    line for line in entries(read_lines(logs / "public" / "log.jsonl")) if line.kind != "start"
]
pd.DataFrame([{"kind": line.kind} | dict(line.told) for line in lines]).T

# %% [markdown]
# ## What is refused
#
# The same token again; a date that is not yet; the purpose that the charter rules out; one group after
# another of the same person. Each is a line in the fund's log, by a rule.

# %%
from lab.errors import PolicyError


def said(question, *arguments):
    try:
        return question(*arguments)[0]
    except PolicyError as error:
        return str(error)


payer, before, tomorrow = claim["payer"], claim["before"], today + timedelta(days=1)
attempts = {
    "the same token": said(trial.fund.answer, token, payer, today, question),
    "a day to come": said(trial.ask, payer, "1", "cancer", tomorrow, today),
    "for the premium": said(trial.ask, payer, "1", "cancer", before, today, "raise the premium"),
    "first group": said(trial.ask, payer, "1", "cancer", before, today),
    "second group": said(trial.ask, payer, "1", "copd", before, today),
    "third group": said(trial.ask, payer, "1", "diabetes", before, today),
}
pd.Series(attempts).to_frame("what came back")

# %% [markdown]
# ## What the supervisor sees
#
# By the fund's log: who asked how often, about how many, and who probes. The log holds together, and no
# name is in it.

# %%
from federated.link.condition import RATES, rates

stack.close()
lines = list(entries(read_lines(logs / "public" / "log.jsonl")))
pd.DataFrame(rates(lines), columns=["insurer", "day", *RATES])
