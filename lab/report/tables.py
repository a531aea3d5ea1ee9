"""The tables of a report, as text in columns; ``report.html`` shows them, and nothing is computed there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lab.report import receipts
from lab.report.learned import who_learns
from lab.report.style import NAMES, Result, judged

ALL = "whole market"
#: Columns up to which a table fits a telephone, and a narrow window.
NARROW, BROAD = 5, 8


@dataclass(frozen=True)
class PageTable:
    """Rows of text under their columns. left: columns that are not numbers; strong: rows that stand
    out; title: what it is called where there are several."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[int] = frozenset({0})
    strong: frozenset[int] = frozenset()
    title: str = ""

    @classmethod
    def of(
        cls,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        left: Iterable[int] = (0,),
        strong: Iterable[int] = (),
        title: str = "",
    ) -> PageTable:
        body = tuple(tuple(row) for row in rows)
        return cls(tuple(columns), body, frozenset(left), frozenset(strong), title)

    @property
    def width(self) -> Literal["narrow", "broad", "wide"]:
        """How much room it needs before it is set row under row."""
        columns = len(self.columns)
        return "narrow" if columns <= NARROW else "broad" if columns <= BROAD else "wide"


def number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def signed(value: float | None, digits: int) -> str:
    """A number with its sign; what rounds to 0 has no minus.

    >>> signed(-1e-9, 5), signed(-0.5, 2)
    ('+0.00000', '-0.50')
    """
    return "–" if value is None else f"{round(value, digits) + 0.0:+.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def shown(value: object) -> str:
    """A value of an answer as a person reads it; hidden is a dot."""
    if value is None or value != value:
        return "·"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e15
        return f"{int(value):,}" if whole else f"{value:,.6g}"
    return str(value)


def parties(result: Result) -> list[str]:
    """The whole market, then each party whose scores are known; real parties keep theirs."""
    return ["all"] if "outlook" in result else ["all", *result["data"]["parties"]]


def name_of(party: str) -> str:
    return ALL if party == "all" else party


#: Scores of the main table: key, name, digits.
_RATES = (
    ("deviance_explained", "Deviance explained", 4),
    ("deviance_explained_of_own_rate", "Against own rate", 4),
    ("gini", "Gini", 3),
    ("balance", "Balance", 3),
)
_DETECTOR = (("average_precision", "PR-AUC", 3), ("roc_auc", "ROC-AUC", 3), ("recall", "Recall", 3))


def arms(result: Result) -> list[PageTable]:
    """A table for each score: parties down, arms across."""
    detector = bool(result["experiment"]["detection"])
    tables = []
    for key, title, digits in _DETECTOR if detector else _RATES:
        rows = [
            (
                name_of(party),
                *_sizes(result, party, title),
                *(_score(a, party, key, digits) for a in result["arms"].values()),
            )
            for party in parties(result)
        ]
        sizes = (judged(result).split(",")[0], *(("frauds",) if detector else ()))
        chance = ("chance",) if title == "PR-AUC" else ()
        if any(cell not in ("–", "no fit") for row in rows for cell in row[len(sizes) + 1 :]):
            columns = ("party", *sizes, *chance, *result["arms"])
            tables.append(PageTable.of(columns, rows, strong=(0,), title=title))
    return tables


def _sizes(result: Result, party: str, title: str) -> tuple[str, ...]:
    """Test rows, and of a detector the frauds among them; beside PR-AUC what chance alone reaches."""
    scores = next((s[party] for a in result["arms"].values() if party in (s := a["scores"])), None)
    if not result["experiment"]["detection"]:
        return (f"{scores['rows']:,}" if scores else "",)
    if scores is None:
        return ("", "", *(("",) if title == "PR-AUC" else ()))
    chance = (number(scores["fraud_share"], 3),) if title == "PR-AUC" else ()
    return (f"{scores['rows']:,}", f"{scores['frauds']:,.0f}", *chance)


def _score(arm: Result, party: str, key: str, digits: int) -> str:
    return number(arm["scores"][party].get(key), digits) if party in arm["scores"] else "no fit"


def differences(result: Result) -> PageTable | None:
    """The federated arm against the others, with intervals."""
    lines = [d for d in result["differences"] if d["against"] != "pooled" or d["party"] == "all"]
    if not lines:
        return None
    return PageTable.of(
        ("party", "against", f"difference in {NAMES[result['headline']]}", "low", "high"),
        [
            (
                name_of(d["party"]),
                d["against"],
                *(signed(d[k], 5) for k in ("difference", "low", "high")),
            )
            for d in lines
        ],
        left=(0, 1),
        strong=[k for k, d in enumerate(lines) if d["party"] == "all"],
    )


def coefficients(result: Result) -> list[tuple[str, Result, PageTable]]:
    """(arm and part, its fit, its table) of each GLM of the shared arms."""
    tables = []
    for arm, entry in result["arms"].items():
        parts = {part: e.get("fit") for part, e in entry.get("parts", {}).items()}
        for part, fit in {"": entry.get("fit"), **parts}.items():
            if fit:
                rows = [
                    (
                        c["name"],
                        "left out"
                        if fit.get("drawn") and c["estimate"] == 0
                        else number(c["estimate"], 6),
                        number(c["standard_error"], 6),
                        number(c["z"], 2),
                        _p(c["p_value"]),
                        *(number(c[k], 6) for k in ("low", "high")),
                    )
                    for c in fit["coefficients"]
                ]
                columns = ("term", "estimate", "standard error", "z", "p", "low", "high")
                name = f"{arm}, {part}" if part else arm
                tables.append((name, fit, PageTable.of(columns, rows)))
    return tables


def relativities(result: Result) -> list[tuple[str, PageTable]]:
    """(arm and part, the factors of its GLM by feature) of the shared arms; with the exposure of the rows
    that models are judged by, where they were compared by the same level."""
    rows_of = judged(result).split(",")[0]
    of = f"exposure of {rows_of}" if result["experiment"]["data"]["exposure"] else rows_of
    tables = []
    for name, fit, _ in coefficients(result):
        arm, _, part = name.partition(", ")
        curves = result["curves"].get(arm, {}).get("levels", {}) if part != "severity" else {}
        size = {
            (column, level): value
            for column, each in curves.items()
            for level, value in zip(each["levels"], each["size"], strict=True)
        }
        rows = [
            (
                line["feature"],
                line["level"],
                number(line["relativity"], 3),
                *(number(line[end], 3) for end in ("low", "high")),
                number(size.get((line["feature"], line["level"])), 0),
            )
            for line in fit.get("relativities", [])
        ]
        if rows:
            base = [k for k, line in enumerate(fit["relativities"]) if line["relativity"] == 1]
            columns = ("feature", "level", "relativity", "low", "high", of)
            tables.append((name, PageTable.of(columns, rows, left=(0, 1), strong=base)))
    return tables


def _p(value: float | None) -> str:
    return "<0.0001" if value is not None and value < 5e-5 else number(value, 4)


def answer(content: Result, most: int = 200) -> PageTable:
    """The first rows of an answer to a question."""
    rows = [[shown(value) for value in row] for row in content["rows"][:most]]
    return PageTable.of(content["columns"], rows)


def outlook(result: Result) -> PageTable:
    """The real parties: who they are and where they stand."""
    rows = [
        (
            p["name"],
            p["role"],
            p["since"],
            f"{p['rows']:,}"
            if p["rows"]
            else "–"
            if p["role"] == "supervisor"
            else receipts.NOT_TOLD,
            p["state"],
        )
        for p in result["outlook"]
    ]
    columns = ("party", "role", "here since (UTC)", "rows behind its sums", "state")
    return PageTable.of(columns, rows, left=(0, 1, 2, 4))


def left(result: Result) -> list[PageTable]:
    """What left the parties: by what it was for, then by party."""
    purposes = (
        "for",
        "adds up",
        "statistic",
        "hidden by",
        "messages",
        "values",
        "bytes",
        "rows behind",
    )
    by_party = ("party", "messages", "values", "bytes", "rows behind")
    return [
        PageTable.of(purposes, receipts.left_by_statistic(result), left=range(4)),
        PageTable.of(by_party, receipts.left_by_party(result)),
    ]


def learned(result: Result) -> PageTable:
    """Who learns what, where sides are joined."""
    rows = who_learns(result)
    strong = [at for at, (_, chosen) in enumerate(rows) if chosen]
    columns = ("what", "an insurer", "the fund", "the coordinator", "the supervisor")
    return PageTable.of(columns, [row for row, _ in rows], left=range(5), strong=strong)


def opened(result: Result) -> PageTable:
    """What came out of the totals."""
    columns = ("for", "made of totals of", "statistic", "numbers", "fewest persons behind a cell")
    return PageTable.of(columns, receipts.opened(result), left=range(3))
