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
# # What the fund knows of an insurer's fraud
#
# An insurer sees the claims that it paid. Other insurers see theirs. The public fund settled the true
# bills of the same persons, and knows their stays, visits and conditions. Whose files should an insurer
# open, and what is each of these worth to it?
#
# The market is simulated, so we know which claims are fraud. Detectors are trained on what
# investigators proved, one person in eighty.

# %%
import os
import tempfile
from pathlib import Path

from federated.run import run
from lab.market.make import make

ROOT = next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "experiments").is_dir())
experiment = ROOT / "experiments" / "market_fraud_hybrid.toml"
market = str(make(Path(tempfile.mkdtemp()) / "market", persons=200_000, seed=7).folder)
quick = {
    "data.market": None,
    "model.trees": 25,
    "model.learning_rate": 0.15,
    "protection.key_bits": 2048,
}
kept = {"runs": os.environ.get("LAB_RUNS", ROOT / "runs"), "track": False}

# %% [markdown]
# ## Alone, and together
#
# First without the fund: each insurer by itself, then one model of all four from encrypted sums.

# %%
together = run(
    experiment,
    quick
    | {
        "joined": [],
        "data.source": "market_claimants",
        "data.path": market,
        "data.features": None,
        "model.own_trees": 0,
        "arms.run": ["alone", "federated"],
    },
    **kept,
)
together

# %% [markdown]
# ## With the fund
#
# Then the fund is joined to each insurer. Both know who is common; of the fund's columns an insurer is
# told one bit a person for each cut that a tree makes on them.

# %%
sides = {"joined.0.path": market, "joined.1.path": market}
with_fund = run(experiment, quick | sides | {"arms.run": ["insurer", "federated"]}, **kept)
with_fund

# %% [markdown]
# ## Three arms side by side
#
# Claimants whose rows were kept for testing, the same in each arm: how well files are ranked, and what is
# saved, in yuan, if each insurer opens three in a hundred at 100 yuan each.

# %%
import pandas as pd

arms = {
    "alone": together.scores.loc["alone"],
    "together": together.scores.loc["federated"],
    "with the fund": with_fund.scores.loc["federated"],
}
scores = pd.concat(arms, axis=1).rename(index={"all": "whole market"})
shown = {"PR-AUC": "average_precision", "found": "found", "net": "net"}
table = pd.concat({name: scores.xs(key, axis=1, level=1) for name, key in shown.items()}, axis=1)
table.insert(0, ("", "frauds"), scores[("alone", "frauds")])
table.style.format("{:,.0f}").format("{:.3f}", subset=["PR-AUC"])

# %% [markdown]
# What the fund's columns are worth, over a model of the insurers' own columns, with 95 % intervals:

# %%
ranking = with_fund.differences.query("against == 'insurer' and party == 'all'").assign(of="PR-AUC")
money = with_fund.worth.query("party == 'all' and measure == 'net'").assign(of="net, yuan")
pd.concat([ranking, money]).set_index("of")[["difference", "low", "high"]].round(3)

# %% [markdown]
# ## Which kinds of fraud
#
# The share found of each kind among the persons kept for testing.
# What the fund shows most are rings, whose members use its card as well, and stays that were cut in two,
# of which it settled the other half.

# %%
import matplotlib.pyplot as plt

from lab.scores.groups import by_typology


def found(study, arm):
    kinds, sums = study.arms[arm].evaluations["model"]["all"].detected.groups["typology"]
    return by_typology(sums, kinds)["recall"].dropna().rename(lambda kind: kind.replace("_", " "))


kinds = {
    "alone": found(together, "alone"),
    "together": found(together, "federated"),
    "with the fund": found(with_fund, "federated"),
}
figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
colours = ["#8a8fb5", "#4d7ea8", "#c2703d"]
pd.DataFrame(kinds).iloc[::-1].plot.barh(ax=axes, color=colours, width=0.75)
axes.set(xlabel="share found by opening three files in a hundred", ylabel="")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What left the nodes
#
# Sums under encryption, in bytes, most of them for trees and for scores with their intervals; and of the
# fund's columns, in the clear for the insurer that it is joined to, the cuts that the trees made.

# %%
side = with_fund.receipt["party"].where(with_fund.receipt["party"] == "fund", "insurers")
sent = with_fund.receipt.groupby(["statistic", "hiding", side], sort=False)["bytes"].sum()
sent.unstack(fill_value=0).loc[["trees_bins", "trees_level", "detection_rank", "trees_cuts"]]

# %%
print(*[line for line in with_fund.notices if "cuts" in line or "joined by" in line], sep="\n")
