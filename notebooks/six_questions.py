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
#
# ## 1. How many visits, by plan and health?
#
# `idp`: individual deductible plan. `hlthp`: rates own health as poor. Few people in the plan are in
# poor health, and at some insurers fewer than ten: that cell is hidden, and so is its neighbour,
# which would give it away.

# %%
import tempfile

from federated.queries.desk import Desk

memory = tempfile.mkdtemp()  # where each insurer keeps what it was asked, and its budget
desk = Desk.on("rand_hie", runs=memory)
visits = desk.ask(
    "select idp, hlthp, count(*) n, avg(mdvis) visits from rand_hie group by idp, hlthp"
)
visits.round(3)

# %% [markdown]
# What left each insurer for it, and by which rules something may be hidden:

# %%
import pandas as pd

print(visits.attrs["rules"])
pd.DataFrame(visits.attrs["receipt"])[["party", "arrays", "values", "bytes", "key_bits", "rows"]]

# %% [markdown]
# ## 2. Do diseases and visits go together?

# %%
desk.ask("select correlation(disea, mdvis, lncoins) from rand_hie").round(4)

# %% [markdown]
# ## 3. How are diseases spread?
#
# Quantiles come as the interval that released counts prove, as narrow as the rules allow. That takes
# many counts, which the insurers remember: correlations, asked after it, would be hidden.

# %%
desk.ask(
    "select quantile(disea, 0.25) q1, median(disea) q2, quantile(disea, 0.75) q3 from rand_hie"
).T

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
# The truth, which nobody of them knows, beside it:

# %%
from lab.tables.sources import load

truth = load("rand_hie").frame.groupby(["idp", "hlthp"]).size().rename("truth").reset_index()
noisy.merge(truth, on=["idp", "hlthp"])

# %%
desk.close()

# %% [markdown]
# ## Who saw what of the first question
#
# The parties once more, from their parts, with an authority that keeps what it was shown.


# %%
from federated.hiding.paillier import KeyAuthority, Paillier
from federated.queries.holdings import Holdings, experiment_of
from secure_agg.keys import generate


class Authority(KeyAuthority):
    def open(self, talk, transcript, request, form):
        self.shown = (transcript, request)
        return super().open(talk, transcript, request, form)


holdings = Holdings.of_experiment(experiment_of("rand_hie"), None)
key = generate(2048)
authority = Authority(key, holdings.rules)
with Desk.simulated(holdings, Paillier(authority)) as desk:
    desk.ask("select idp, hlthp, count(*) n, avg(mdvis) visits from rand_hie group by idp, hlthp")

# %% [markdown]
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
from federated.messages import opened
from federated.party.release import expected
from secure_agg import paillier
from secure_agg.transcript import examine

total = paillier.decrypt(key, examine(authority._roster, transcript, key.public, ()))
cells = opened(expected(request), total).arrays
pd.DataFrame(cells, index=visits.set_index(["idp", "hlthp"]).index).round(0)

# %% [markdown]
# **The analyst** saw the table of question 1, and nothing of the cells that are hidden in it.
