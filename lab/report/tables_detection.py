"""The tables of a fraud detector: money at the budget, who stays away, kinds of fraud, fairness."""

from __future__ import annotations

from lab.report.style import Result, units
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


#: Arms of less than all, and what the federated one has more.
LESS = {"alone": "joining", "insurer": "the fund's columns", "fund": "the insurers' columns"}


def _arms_of_less(result: Result) -> list[str]:
    return [arm for arm in LESS if arm in result["arms"]]


def money_by_party(result: Result) -> PageTable | None:
    """What the shared detector brings each party at the budget, and the budget that pays best."""
    shared = _paid(result, "federated")
    if not shared:
        return None
    columns = ["party", "investigated", "frauds found", "saved", "cost", "net", "best budget"]
    rows = [
        (
            name_of(party),
            *(_whole(s[k]) for k in ("investigated", "found", "saved", "cost", "net")),
            f"{_whole(s['best_investigated'])} ({percent(s['best_investigated'] / s['rows'])})",
            _whole(s["best_net"]),
        )
        for party, s in shared.items()
    ]
    return PageTable.of([*columns, "net there"], rows, strong=_whole_market(rows))


def worth_by_party(result: Result) -> PageTable | None:
    """Net savings of the shared detector beside those of each arm of less."""
    shared, less = _paid(result, "federated"), _arms_of_less(result)
    if not shared or not less:
        return None
    nets = {arm: _paid(result, arm) for arm in less}
    columns = [name for arm in less for name in (f"net, {arm}", f"{LESS[arm]} (95 % interval)")]
    rows = [
        (
            name_of(party),
            _whole(s["net"]),
            *(
                cell
                for arm, own in nets.items()
                for cell in (
                    _whole(own[party]["net"]) if party in own else "no fit",
                    _worth(result, arm, "net", party),
                )
            ),
        )
        for party, s in shared.items()
    ]
    return PageTable.of(["party", "net, federated", *columns], rows, strong=_whole_market(rows))


def _paid(result: Result, arm: str) -> dict[str, Result]:
    """An arm's scores by party, where they are of money."""
    scores = result["arms"].get(arm, {}).get("scores", {})
    if not result["experiment"]["detection"]["amount"]:
        return {}
    return {party: scores[party] for party in parties(result) if party in scores}


def _whole_market(rows: list[tuple[str, ...]]) -> list[int]:
    return [k for k, row in enumerate(rows) if row[0] == ALL]


def _worth(
    result: Result, against: str, measure: str, party: str = "all", kind: str | None = None
) -> str:
    """A difference with its interval; a dash where there is none."""
    digits = 3 if measure == "recall" else 0
    for line in result.get("worth", []):
        of = (line["against"], line["measure"], line["party"], line["kind"])
        if of == (against, measure, party, kind):
            value, low, high = (
                None if line[k] is None else f"{line[k]:+,.{digits}f}"
                for k in ("difference", "low", "high")
            )
            return f"{value} ({low}, {high})" if low else str(value)
    return "–"


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
    arms = _detected(result)
    kinds = [t for t in arms.get("federated", {}).get("typologies", []) if t["fraud"]]
    if not kinds:
        return None
    found = {a: {t["typology"]: t["recall"] for t in d["typologies"]} for a, d in arms.items()}
    rows = [
        (
            t["typology"].replace("_", " "),
            _whole(t["fraud"]),
            *(number(found[arm].get(t["typology"]), 3) for arm in arms),
        )
        for t in kinds
    ]
    return PageTable.of(("kind", "frauds", *(f"found, {arm}" for arm in arms)), rows)


def worth_by_kind(result: Result) -> PageTable | None:
    """Of each kind, what the federated detector finds and saves more than one of less."""
    lines = [line for line in result.get("worth", []) if line["kind"] is not None]
    if not lines:
        return None
    measures = ("recall", "saved") if result["experiment"]["detection"]["amount"] else ("recall",)
    less, words = _arms_of_less(result), {"recall": "share found", "saved": "saved"}
    rows = [
        (
            kind.replace("_", " "),
            *(_worth(result, arm, of, kind=kind) for arm in less for of in measures),
        )
        for kind in dict.fromkeys(line["kind"] for line in lines)
    ]
    return PageTable.of(
        ["kind", *(f"{LESS[arm]}, {words[of]}" for arm in less for of in measures)], rows
    )


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
    columns = ["group", units(result), "flagged", "recall", "ratio of recall", "false positives"]
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
