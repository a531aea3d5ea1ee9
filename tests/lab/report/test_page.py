"""The report says what a run found: in words, in tables that fit, in colours that can be read."""

from __future__ import annotations

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from federated.party.statistics import COMMON
from federated.study.experiment import Experiment
from federated.study.joined import LEARNS
from lab.models.files import KINDS, statistics_of
from lab.report import page, receipts, tables, verdict
from lab.report.style import COLOURS, THEMES, judged, themed

EXPERIMENTS = sorted(Path(__file__).parents[3].joinpath("experiments").glob("*.toml"))
SCORES = {"rows": 4038, "deviance_explained": 0.09, "gini": 0.2, "balance": 1.0}


def result(**changes: Any) -> dict[str, Any]:
    """A run of two parties, as far as words and tables read it."""
    line = {"against": "alone", "party": "all", "difference": 0.0024, "low": -0.002, "high": 0.006}
    arm = {"scores": {"all": SCORES, "a": SCORES | {"rows": 2000}}}
    values = {
        "experiment": {"detection": None, "data": {"target": "visits"}},
        "data": {"in_sample": False, "parties": {"a": {}, "b": {}}},
        "headline": "deviance_explained",
        "arms": {"alone": arm, "federated": arm},
        "differences": [line],
    }
    return values | changes


@pytest.mark.parametrize(
    ("difference", "low", "high", "words"),
    [
        (0.0024, -0.0018, 0.0062, "0.24 percentage points more of the deviance than alone "
         "(95 % interval -0.18 to +0.62); on 4,038 test rows that is not proved."),
        (0.01, 0.002, 0.02, "points more .* on 4,038 test rows that is proved."),
        (-0.01, -0.02, -0.002, "points less .* on 4,038 test rows that is proved."),
        (0.01, None, None, "There is no interval without resamples."),
    ],
)  # fmt: skip
def test_the_verdict_is_proved_where_its_interval_leaves_out_0(
    difference: float, low: float, high: float, words: str
) -> None:
    line = {"against": "alone", "party": "all", "difference": difference, "low": low, "high": high}
    sentence = verdict.verdict(result(differences=[line]))
    assert re.search(
        words.replace("(95 %", r"\(95 %").replace("62)", r"62\)").replace("+0", r"\+0"), sentence
    )


def test_the_verdict_claims_nothing_in_sample_and_names_no_arm_that_did_not_run() -> None:
    in_sample = verdict.verdict(result(data={"in_sample": True, "parties": {}}))
    assert in_sample.startswith("No rows were kept for testing")
    shared = {"federated": {"scores": {"all": SCORES}}}
    assert verdict.verdict(result(arms=shared, differences=[])) == (
        "The federated model explains 9.00 % of the deviance, on 4,038 test rows."
    )
    assert verdict.against_pooled(result()) == ""
    assert verdict.verdict(result(arms={})) == ""


def test_joined_sides_are_compared_with_the_better_of_the_two() -> None:
    arms = {a: {"scores": {"all": SCORES}} for a in ("federated", "insurer", "fund")}
    arms["fund"] = {"scores": {"all": SCORES | {"deviance_explained": 0.095}}}
    lines = [
        {
            "against": side,
            "party": "all",
            "difference": gain,
            "low": gain - 0.01,
            "high": gain + 0.01,
        }
        for side, gain in (("insurer", 0.05), ("fund", -0.005))
    ]
    assert verdict.verdict(result(arms=arms, differences=lines)) == (
        "Joining explains 0.50 percentage points less of the deviance than the fund's own columns "
        "(95 % interval -1.50 to +0.50); on 4,038 test rows that is not proved."
    )


def test_arms_on_different_rows_are_not_compared() -> None:
    """Where some party has no model of its own, alone is scored on the others' rows."""
    arms = {
        "federated": {"scores": {"all": SCORES}},
        "alone": {"scores": {"all": SCORES | {"rows": 9}}},
    }
    sentence = verdict.verdict(result(arms=arms, differences=[]))
    assert sentence.startswith("The federated model explains")


def test_a_party_without_a_fit_is_said_to_have_none() -> None:
    explained, gini, balance = tables.arms(result())
    assert explained.columns == ("party", "test rows", "alone", "federated")
    assert explained.rows[0] == ("whole market", "4,038", "0.0900", "0.0900")
    assert explained.rows[2] == ("b", "", "no fit", "no fit")
    assert (gini.title, balance.title) == ("Gini", "Balance")


def test_every_statistic_is_explained_in_the_receipt() -> None:
    names = {*COMMON, *(row.name for kind in KINDS for row in statistics_of(kind))}
    assert names <= set(receipts.EXPLANATIONS)


def test_who_learns_what_of_joined_sides_is_on_the_page_for_every_way() -> None:
    settings = {
        "joined": [{"role": "fund"}],
        "alignment": {"learns": "both"},
        "protection": {"product": "paillier"},
        "model": {"kind": "trees"},
    }
    table = tables.learned(result(experiment=settings))
    names = [row[0] for row in table.rows]
    assert names[:4] == [f"alignment: {way}" for way in LEARNS]
    chosen = [names[at] for at in sorted(table.strong)]
    assert chosen[:2] == ["alignment: both", "products: paillier"] and "cuts" in chosen
    assert not tables.learned(result()).rows


def line(party: str, statistic: str, rows: int) -> dict[str, Any]:
    sizes = {"messages": 2, "values": 30, "bytes": 400, "rows": rows}
    return {"party": party, "statistic": statistic, "hiding": "paillier", **sizes}


def test_receipts_are_grouped_and_0_rows_are_not_told() -> None:
    lines = [
        line("a", "cells", 0),
        line("b", "cells", 0),
        line("a", "glm_step", 90),
        line("b", "glm_step", 0),
        line("a", "moments", 90),
        line("b", "moments", 70),
        line("a", "part of a decryption", 0),
    ]
    rows = receipts.left_by_statistic({"receipt": lines})
    assert [(row[0], row[-1]) for row in rows] == [
        ("agreeing on columns", "70 to 90"),
        ("fitting the model", "90, not told by 1"),
        ("questions", "not told"),
        ("opening totals", "–"),
    ]
    assert rows[0][4:7] == ("4", "60", "800")
    assert receipts.left_by_party({"receipt": lines})[1] == ("b", "6", "90", "1,200", "70")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_experiment_on_the_page_reads_as_the_same_experiment(
    path: Path, tmp_path: Path
) -> None:
    experiment = Experiment.read(path)
    (tmp_path / "again.toml").write_text(page.toml(experiment.model_dump(mode="json")))
    assert Experiment.read(tmp_path / "again.toml") == experiment


def test_signs_that_are_not_seen_are_seen_in_the_experiment_and_read_as_they_are() -> None:
    name = 'a\u202eb\u00a0c\x1b[2K \U000e0001 "q" \\ end'
    text = page.toml({"name": name, "list": [None, "x"], "none": None} | {"list": ["x"]})
    assert all(sign.isprintable() or sign == "\n" for sign in text)
    assert tomllib.loads(text) == {"name": name, "list": ["x"]}


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_all_that_is_read_has_a_contrast_of_4_5(theme: str) -> None:
    colours = THEMES[theme]
    pairs = [(text, ground) for text in ("ink", "pale") for ground in ("paper", "card", "grid")]
    pairs += [(arm, "card") for arm in COLOURS if arm in colours]
    pairs += [(arm, "paper") for arm in COLOURS if arm in colours]
    pairs += [("sealed-ink", "sealed"), ("clear-ink", "clear")]
    weak = {pair: round(contrast(*(colours[name] for name in pair)), 2) for pair in pairs}
    assert {pair: value for pair, value in weak.items() if value < 4.5} == {}


def test_a_figure_follows_the_colours_of_the_page() -> None:
    assert set(THEMES["light"]) == set(THEMES["dark"])
    assert themed(f"fill: {COLOURS['alone']}; stroke: {COLOURS['pooled']}") == (
        "fill: var(--alone); stroke: var(--ink)"
    )


class Outline(HTMLParser):
    """What a reader who does not see the page is told of it."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: list[dict[str, str | None]] = []
        self.identities: list[str] = []
        self.headless_rows = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "svg":
            self.figures.append(values)
        if tag == "th" and values.get("scope") not in ("row", "col"):
            self.headless_rows += 1
        if values.get("id"):
            self.identities.append(str(values["id"]))


def test_the_rows_that_scores_are_of_are_named_in_sample() -> None:
    whole = {"data": {"in_sample": True, "parties": {"a": {}, "b": {}}}}
    assert judged(result(**whole)) == "training rows, in sample"
    headers = [sheet.columns[1] for sheet in tables.arms(result(**whole))]
    assert headers and set(headers) == {"training rows"}
