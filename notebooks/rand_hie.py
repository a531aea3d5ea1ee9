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
# # What is joining worth to six health insurers?
#
# Six insurers of unequal size hold the RAND Health Insurance Experiment: a year of one person in
# each row, and the number of visits to a physician. Each can fit a Poisson model on its own rows
# (**alone**). All of them can fit one together, from encrypted sums (**federated**). Nobody may put
# all rows in one place (**pooled**), so that arm is only there to see what is lost.

# %%
import os
from pathlib import Path

from federated.run import run

ROOT = next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "experiments").is_dir())
study = run(ROOT / "experiments" / "rand_hie.toml", runs=os.environ.get("LAB_RUNS", ROOT / "runs"))

# %% [markdown]
# ## Each arm, scored on each party's test rows
#
# Deviance explained: 1 is perfect, 0 is a constant rate. The federated model is the pooled one.

# %%
study.scores["deviance_explained"].unstack("arm").sort_index().round(4)

# %% [markdown]
# ## How sure is that?
#
# Paired bootstrap over test rows: federated minus alone, with 95 % intervals. The smaller the
# insurer the wider its interval; all of them hold 0, so these test rows do not prove a gain.

# %%
study.differences.query("against == 'alone'").set_index("party").round(4)

# %%
import matplotlib.pyplot as plt

differences = study.differences.query("against == 'alone' and party != 'all'").iloc[::-1]
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
axes.hlines(differences["party"], differences["low"], differences["high"], color="#0f766e")
axes.plot(differences["difference"], differences["party"], "D", color="#0f766e")
axes.axvline(0, color="#6b7780", lw=0.8)
axes.set_xlabel("deviance explained, federated minus alone")
plt.show()

# %% [markdown]
# ## The federated fit is the pooled maximum-likelihood fit
#
# The largest relative difference of a coefficient between the two arms, after everything went
# through 3072-bit Paillier encryption:

# %%
fits = study.fits("model")
federated, pooled = (fits[arm].coefficients().set_index("name") for arm in ("federated", "pooled"))
print(f"{(federated['estimate'] / pooled['estimate'] - 1).abs().max():.1e}")
federated[["estimate", "standard_error", "z", "low", "high"]].round(4)

# %% [markdown]
# ## What left the nodes
#
# Written down at each party's gate. Sums under encryption; no row.

# %%
study.receipt.groupby("party", sort=False)[["messages", "values", "bytes"]].sum()

# %% [markdown]
# ## Every run stays
#
# The run's folder holds its report; MLflow holds its parameters, scores and model.

# %%
from federated.study.run_folder import kept

[(item["name"], item["scores"], item["logged"]) for item in kept(study.folder.parent)][:3]
