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
# # One ring, seen by each of its payers
#
# Some patients are brought to one clinic again and again for a few weeks, and their visits are
# billed to several insurers. Each insurer sees two or three of them. Who can see the ring?
#
# The market is simulated, so we know where the ring is. The public insurer and four commercial ones
# train a detector alone, and together under Paillier encryption.

# %%
import os
from pathlib import Path

from federated.run import run

ROOT = next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "experiments").is_dir())
changes = {
    "data.market.seed": 7,
    "model.trees": 40,
    "model.learning_rate": 0.1,
    "protection.key_bits": 2048,
    "arms.run": ["alone", "federated"],
    "arms.replicates": 20,
}
runs = os.environ.get("LAB_RUNS", ROOT / "runs")
study = run(ROOT / "experiments" / "market_fraud.toml", changes, runs=runs)

# %% [markdown]
# ## Where the ring is
#
# The truth, which no party has: the clinic and the six weeks with most claims of a ring.

# %%
import pandas as pd

profiles = {
    name: study.arms[arm].models[holder]["model"].profiles[1]  # of visits the fund has not paid for
    for arm, holder, name in [
        ("federated", "all", "together"),
        *(("alone", p.name, p.name.removeprefix("payer ")) for p in study.market.parties),
    ]
}
claims = pd.concat([p.claims().assign(party=p.name) for p in study.market.parties])
claims["cell"] = profiles["together"].cells.cell(claims)
ring = claims[(claims["typology"] == "ring") & (claims["fund_paid"] == 0)]
place = ring["cell"].mode().iloc[0]
ring[ring["cell"] == place].groupby("party")["person"].agg(["size", "nunique"])

# %% [markdown]
# ## What each payer sees of it
#
# For every clinic in every six weeks, each payer counts the persons who come again. How many places
# look at least as odd as the ring's, to each of them? Together a place is known only where ten persons
# of three payers are in it, with as many others: at two places, of which one is the ring's.

# %%
visitors = {name: pd.Series(p.columns["unfunded_returning"]) for name, p in profiles.items()}
pd.DataFrame(
    {
        name: {
            "persons who come again": counts[place],
            "places at least as odd": int((counts >= counts[place]).sum()),
            "places known": int(counts.notna().sum()),
        }
        for name, counts in visitors.items()
    }
).T.astype(int)

# %% [markdown]
# An employer that has a physiotherapist in looks like a ring to its own insurer; it does not reach
# over several insurers. So together they count two things: who comes again, and at how many of them.

# %%
import matplotlib.pyplot as plt
import numpy as np

together = profiles["together"].columns
again = pd.Series(together["unfunded_returning"])
insurers = pd.Series(together["unfunded_returning_parties"])
shift = np.random.default_rng(0).uniform(-0.2, 0.2, len(again))
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.scatter(again, insurers + shift, s=9, color="#8a8fb5", label="a clinic in six weeks")
axes.scatter(again[place], insurers[place], s=70, color="#c2703d", marker="D", label="the ring")
axes.set(xlabel="persons who come again", ylabel="payers they belong to")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What it is worth over all kinds of fraud
#
# The detectors take these counts as features beside the claim's own columns. PR-AUC on the claims of
# the last year, judged by the truth. Every insurer gains; the public payer, which has most claims, does not.

# %%
study.scores["average_precision"].unstack("arm").round(3)

# %% [markdown]
# ## What left the payers
#
# Sums under encryption. The profile of the clinics was opened only where at least ten persons of at
# least three payers are in a cell; who they are was never told.

# %%
traffic = study.receipt.groupby("statistic", sort=False)[["messages", "values", "bytes"]].sum()
traffic.loc[["profile", "trees_bins", "trees_level", "detection_rank"]]
