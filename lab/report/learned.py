"""Who learns what where two sides are joined, for each way of alignment and product."""

from __future__ import annotations

from lab.report.style import Result

NOTHING, COUNT, NAMED = "nothing", "how many are common", "which of its persons are common"
#: Of each step of a run: who the insurer, the fund, the coordinator and the supervisor learn of. The
#: supervisor holds the key to totals: it is the releaser as well.
ALIGNMENT = {
    "hidden": (COUNT, COUNT, COUNT, "the rows of the spine, if it deals"),
    "both": (NAMED, NAMED, COUNT, "the same"),
    "insurer": (NAMED, COUNT, COUNT, "the same"),
    "fund": (COUNT, NAMED, COUNT, "the same"),
}
PRODUCT = {
    "triples": (NOTHING, NOTHING, "sizes of letters", "sizes; it deals both sides' randomness"),
    "paillier": (f"{NOTHING}, to 2⁻⁴⁰", f"{NOTHING}, to 2⁻⁴⁰", "sizes of letters", NOTHING),
}
TOTALS = (NOTHING, NOTHING, "how many numbers", "all, of the persons in common together")
CUTS = ("one bit a person and cut on the fund's columns", NOTHING, NOTHING, NOTHING)
STEPS = ("what the model is at each step", *["the same"] * 3)
MODEL = ("the model, its scores", *["the same"] * 3)

Row = tuple[str, ...]


def who_learns(result: Result) -> list[tuple[Row, bool]]:
    """A row for each way, and whether it is this run's; none where no sides are joined."""
    experiment = result["experiment"]
    if not experiment.get("joined") or "federated" not in result["arms"]:
        return []
    learns, product = experiment["alignment"]["learns"], experiment["protection"]["product"]
    rows = [((f"alignment: {k}", *row), k == learns) for k, row in ALIGNMENT.items()]
    rows += [((f"products: {k}", *row), k == product) for k, row in PRODUCT.items()]
    rows.append((("totals of the model", *TOTALS), True))
    if experiment["model"]["kind"] == "trees":
        rows.append((("cuts", *CUTS), True))
    return [*rows, (("steps of the solver", *STEPS), True), (("the outcome", *MODEL), True)]
