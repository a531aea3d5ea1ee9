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
# # Six questions to six insurers
#
# Six insurers hold the RAND Health Insurance Experiment, a year of one person in each row. An
# analyst asks them in SQL. Each insurer takes sums over its own rows and encrypts them; the sums are
# added unread; a key authority opens the total and releases **what the disclosure rules leave**.
# The analyst gets a DataFrame. Hidden cells are NaN, without a reason.

# %%
from pathlib import Path

from federated.hiding.paillier import KeyAuthority, Paillier
from federated.queries.desk import Desk
from federated.queries.holdings import Holdings
from federated.study.experiment import Experiment
from lab.queries.query_table import Budget
from secure_agg.keys import generate

ROOT = next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "experiments").is_dir())
experiment = Experiment.read(ROOT / "experiments" / "rand_hie.toml")


# %% [markdown]
# The authority here keeps what it was shown, so that we can look at it below.


# %%
class Authority(KeyAuthority):
    def open(self, talk, transcript, request, form):
        self.shown = (transcript, request)
        return super().open(talk, transcript, request, form)


# %%
import tempfile

state = Path(tempfile.mkdtemp())  # each insurer keeps its history and its budget below
budget = experiment.protection.model_copy(update={"budget": Budget(epsilon=2.0)})
holdings = Holdings.of_experiment(experiment.model_copy(update={"protection": budget}), state)
key = generate(2048)
authority = Authority(key, holdings.rules)
desk = Desk.simulated(holdings, Paillier(authority))

# %% [markdown]
# ## 1. How many visits, by plan and health?
#
# `idp`: individual deductible plan. `hlthp`: rates own health as poor. Few people in the plan are in
# poor health, and at some insurers fewer than ten: that cell is hidden, and so is its neighbour,
# which would give it away.

# %%
visits = desk.ask(
    "select idp, hlthp, count(*) n, avg(mdvis) visits from rand_hie group by idp, hlthp"
)
visits.round(3)

# %% [markdown]
# ### Who saw what of this question
#
# **The coordinator** passed on ciphertexts, signed. This is the start of one insurer's:

# %%
transcript, request = authority.shown
contribution = transcript.contributions[0]
batch = contribution.batch
print(contribution.party, f"{len(batch):,} bytes:", batch[-32:].hex(), "…")

# %% [markdown]
# **The holder of the key** was shown all signed contributions, checked them, added them itself and
# opened the total: every cell of it, the small ones too, with how many insurers are in a cell, how
# many veto it, and how far its amount is from being one person's (below 0 is safe). It saw no
# insurer's part.

# %%
import pandas as pd

from federated.messages import opened
from federated.party.release import expected
from secure_agg import paillier
from secure_agg.transcript import examine

total = paillier.decrypt(key, examine(authority._roster, transcript, key.public, ()))
cells = opened(expected(request), total).arrays
pd.DataFrame(cells, index=visits.set_index(["idp", "hlthp"]).index).round(0)

# %% [markdown]
# **The analyst** saw the table above, and nothing of the cells that are hidden in it. The insurer's
# own receipt of the question, and the analyst's:

# %%
print((next(state.glob("*/insurer-1")) / "receipt.jsonl").read_text())
pd.DataFrame(visits.attrs["receipt"])[["party", "arrays", "values", "bytes", "key_bits", "rows"]]

# %% [markdown]
# ## 2. How are diseases spread?
#
# Quantiles come as the interval that released counts prove, as narrow as the rules allow.

# %%
desk.ask(
    "select quantile(disea, 0.25) q1, median(disea) q2, quantile(disea, 0.75) q3 from rand_hie"
).T

# %% [markdown]
# ## 3. Do diseases and visits go together?

# %%
desk.ask("select correlation(disea, mdvis, lncoins) from rand_hie").round(4)

# %% [markdown]
# ## 4. Are the insurers' members alike?
#
# Population stability index of each insurer against the market; each sees its own, the analyst the
# mean and how many are above the usual lines.

# %%
desk.ask("select drift(disea, 0, 5, 10, 15, 20, 59) from rand_hie").round(4)

# %% [markdown]
# ## 5. And without those in poor health?
#
# Asked after the first question, this would leave the few by subtraction. Each insurer remembers
# what it answered, whoever asked.

# %%
desk.ask("select idp, count(*) n from rand_hie where hlthp = 0 or idp = 0 group by idp")

# %% [markdown]
# ## 6. The same, with noise
#
# Every insurer adds Laplace noise of its own for epsilon 0.5 and charges its budget first. The
# interval is where the total without noise lies, 95 times in a hundred.

# %%
from lab.privacy.noise import Noise

noisy = desk.ask(
    "select idp, hlthp, count(*) n from rand_hie group by idp, hlthp", noise=Noise(epsilon=0.5)
)
noisy

# %% [markdown]
# The truth, which nobody of them knows, beside it; and what the first insurer has left of its budget:

# %%
rows = pd.concat([party.query_table.frame for party in holdings.parties])
truth = rows.groupby(["idp", "hlthp"]).size().rename("truth").reset_index()
print(f"left of the budget: {holdings.parties[0].query_table.ledger.remaining():g}")
noisy.merge(truth, on=["idp", "hlthp"])

# %%
desk.close()
