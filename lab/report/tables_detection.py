"""The tables of a fraud detector: money at the budget, who stays away, kinds of fraud, fairness."""

from __future__ import annotations

from lab.report.style import Result
from lab.report.tables import ALL, PageTable, name_of, number, parties, percent, signed


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{round(value):,}"


def budget(result: Result) -> PageTable:
    """What each arm's detector brings on the whole market at the budget."""
    money = bool(result["experiment"]["detection"]["amount"])
    scores = {a: v["scores"]["all"] for a, v in result["arms"].items() if "all" in v["scores"]}
    columns = ["arm", "investigated", "frauds found", "precision", "recall", "lift"]
    rows = [
        (
            arm,
            _whole(s["investigated"]),
            _whole(s["found"]),
            number(s["precision"], 3),
            number(s["recall"], 3),
            number(s["lift"], 1),
            *((_whole(s[k]) for k in ("saved", "cost", "net")) if money else ()),
        )
        for arm, s in scores.items()
    ]
    strong = [k for k, arm in enumerate(scores) if arm == "federated"]
    return PageTable.of(
        [*columns, *(("saved", "cost", "net") if money else ())], rows, strong=strong
    )


def money_by_party(result: Result) -> PageTable | None:
    """What the shared detector brings each party, beside its own, and the budget that pays best."""
    shared = result["arms"].get("federated", {}).get("scores", {})
    if not result["experiment"]["detection"]["amount"] or not shared:
        return None
    own = result["arms"].get("alone", {}).get("scores", {})
    lines = [(party, shared[party]) for party in parties(result) if party in shared]
    columns = ["party", "investigated", "frauds found", "saved", "cost", "net"]
    columns += [*(["net, alone"] if own else []), "best budget", "net there"]
    rows = [
        (
            name_of(party),
            *(_whole(s[k]) for k in ("investigated", "found", "saved", "cost", "net")),
            *((_whole(own[party]["net"]) if party in own else "no fit",) if own else ()),
            f"{_whole(s['best_investigated'])} ({percent(s['best_investigated'] / s['rows'])})",
            _whole(s["best_net"]),
        )
        for party, s in lines
    ]
    return PageTable.of(columns, rows, strong=[k for k, row in enumerate(rows) if row[0] == ALL])


def joining(result: Result) -> PageTable | None:
    """What a party's staying away costs it and the others."""
    if not result["joining"]:
        return None
    columns = ["party", "own rows, joined", "own rows, away", "gain (95 % interval)"]
    columns += ["others' rows, joined", "others' rows, away", "gain (95 % interval)"]
    rows = [
        (j["party"], *(cell for place in ("own_rows", "others_rows") for cell in _gain(j, place)))
        for j in result["joining"]
    ]
    return PageTable.of(columns, rows)


def _gain(line: Result, place: str) -> tuple[str, str, str]:
    low, high = (signed(line[f"{place}_{end}"], 3) for end in ("low", "high"))
    gain = f"{signed(line[f'{place}_gain'], 3)} ({low}, {high})"
    return number(line[f"{place}_federated"], 3), number(line[f"{place}_without"], 3), gain


def _detected(result: Result) -> dict[str, Result]:
    """The market's scores of each arm's detector."""
    return {a: c["detection"] for a, c in result["curves"].items() if c and c.get("detection")}


def typologies(result: Result) -> PageTable | None:
    """Frauds of each kind found by each arm at the budget."""
    arms, money = _detected(result), bool(result["experiment"]["detection"]["amount"])
    kinds = [t for t in arms.get("federated", {}).get("typologies", []) if t["fraud"]]
    if not kinds:
        return None
    found = {a: {t["typology"]: t["recall"] for t in d["typologies"]} for a, d in arms.items()}
    rows = [
        (
            t["typology"].replace("_", " "),
            _whole(t["fraud"]),
            *(number(found[arm].get(t["typology"]), 3) for arm in arms),
            *((_whole(t["saved"]),) if money else ()),
        )
        for t in kinds
    ]
    columns = ("kind", "frauds", *(f"found, {arm}" for arm in arms))
    return PageTable.of([*columns, *(["saved, federated"] if money else [])], rows)


def told(result: Result) -> PageTable | None:
    """What payers of the simulated market find by telling each other, among all insurers' claims."""
    lines = [line for line in result.get("told", ()) if line["claims"]]
    if not lines:
        return None
    rows = [
        (
            line["name"].replace("_", " "),
            *(_whole(line[name]) for name in ("claims", "hits", "false_alarms")),
            *(number(line[name], 3) for name in ("recall", "precision")),
            *(_whole(line[name]) for name in ("yuan", "hit_yuan")),
        )
        for line in lines
    ]
    columns = ("kind", "frauds", "found", "false alarms", "recall", "precision")
    return PageTable.of([*columns, "paid on frauds", "of these found"], rows)


def fairness(result: Result) -> PageTable | None:
    """Rates of each group, and their ratios to the largest."""
    groups = _detected(result).get("federated", {}).get("groups", {})
    lines = [(c, g) for c, own in groups.items() for g in own if g["rows"] is not None]
    if not lines:
        return None
    columns = ["group", "claims", "flagged", "recall", "ratio of recall", "false positives"]
    columns += ["ratio of false positives", "precision"]
    rows = [
        (
            f"{column} {g['group']}",
            _whole(g["rows"]),
            percent(g["flagged_share"], 2),
            number(g["recall"], 3),
            number(g["recall_ratio"], 2),
            percent(g["false_positive_rate"], 2),
            number(g["false_positive_rate_ratio"], 2),
            number(g["precision"], 3),
        )
        for column, g in lines
    ]
    return PageTable.of(columns, rows)
