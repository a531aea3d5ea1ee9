"""What an asker reads of the fund's columns from scores: Luo, Wu, Xiao and Ooi, "Feature inference attack on model
predictions in vertical federated learning" (arXiv 2010.10152), for a GLM whose coefficients both sides know.

A score less the asker's own part is one equation about the fund's columns, which have few values: whoever
knows the coefficients looks for the rows of values that solve it. Measured on 400 persons and six columns:
how many persons have all six read, and how many have the rarest condition read among those who have it.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from federated.link.consent import consented
from federated.link.party_log import party_log
from federated.queries.person import bands, leaves
from federated.queries.person.asked import AskedSide, BroughtQuestion
from federated.queries.person.leaves import SharedTrees
from federated.queries.person.sides import Linear, ScoredSide
from federated.queries.person.terms import ScoreTerms
from federated.study.arms import perform
from federated.study.experiment import Experiment
from lab.errors import PolicyError
from lab.models.families import Family
from lab.models.tree_model import Trees, binned
from secure_agg.identity import Identity
from secure_agg.ristretto import SIZE, blind, derived_key, encoded, finalize
from tests.federated.queries.test_person_trees import model_of, sides_of

LAW, TODAY, PERSONS = Family.make("poisson"), date(2026, 3, 1), 400
#: The fund's columns: coefficients, and how common each value is.
COLUMNS = {
    "age band": ((0.0, 0.1127, 0.2869, 0.4013, 0.6881), (0.2, 0.25, 0.25, 0.2, 0.1)),
    "sex": ((0.0, 0.0793), (0.5, 0.5)),
    "income band": ((0.0, -0.0411, -0.0868, -0.1232), (0.3, 0.3, 0.25, 0.15)),
    "hypertension": ((0.0, 0.3517), (0.85, 0.15)),
    "diabetes": ((0.0, 0.5374), (0.92, 0.08)),
    "heart disease": ((0.0, 0.8196), (0.96, 0.04)),
}
RAREST = 5
#: Every row of values, its part of a score, how common it is.
ROWS = np.array(list(itertools.product(*(range(len(c)) for c, _ in COLUMNS.values()))))
PARTS = sum(np.array(c)[ROWS[:, k]] for k, (c, _) in enumerate(COLUMNS.values()))
COMMON = np.prod([np.array(p)[ROWS[:, k]] for k, (_, p) in enumerate(COLUMNS.values())], axis=0)
TERMS = ScoreTerms.read()
ILL, WEIGHTS = ROWS[:, RAREST] == 1, COMMON / COMMON.sum()
OWN = ("own 0", "own 1", "own 2")


def population() -> tuple[np.ndarray, np.ndarray]:
    """(the fund's row of values of each person, the asker's own part)."""
    rng = np.random.default_rng(8)
    return rng.choice(len(ROWS), PERSONS, p=COMMON / COMMON.sum()), rng.normal(-2.0, 0.7, PERSONS)


def read(candidates: list[np.ndarray], truth: np.ndarray) -> tuple[float, float]:
    """(share of persons with all columns right, share of those with the rarest condition read).

    candidates: which rows of values each person may still have; the most common one is guessed."""
    own, theirs = ROWS[[int(np.argmax(COMMON * left)) for left in candidates]], ROWS[truth]
    ill = theirs[:, RAREST] == 1
    return float((own == theirs).all(axis=1).mean()), float(own[ill, RAREST].mean())


#: (places, rows of values) the band that an asker is told at each place.
PLACES = np.arange(bands.PLACES // 2 - 60, bands.PLACES // 2)
TOLD = np.array([bands.bands_at(part, TERMS.bands, LAW)[PLACES] for part in PARTS]).T


def best(left: np.ndarray) -> int:
    """Where to ask next: the place whose bands tell the rows that are left apart best."""
    weights = COMMON * left / (COMMON * left).sum()
    shares = np.array([np.bincount(row, weights, len(TERMS.bands) + 1) for row in TOLD])
    return int(np.argmin((shares * np.log(shares + 1e-300)).sum(axis=1)))


def after(questions: int, row: int) -> np.ndarray:
    """The rows that are left of a person after so many questions, each where it tells most."""
    left = np.ones(len(ROWS), dtype=bool)
    for _ in range(questions):
        place = best(left)
        left &= TOLD[place] == TOLD[place][row]
    return left


def test_unprotected_exact_scores_are_the_fund_s_columns():
    truth, own = population()
    parts = np.log(np.exp(own + PARTS[truth])) - own
    assert read([np.isclose(PARTS, part, atol=1e-9) for part in parts], truth) == (1.0, 1.0)


def test_unprotected_six_bands_of_a_person_are_the_other_s_part_to_a_step():
    """The asker lies about its own part, and asks where the answer tells most."""
    truth, _ = population()
    whole, ill = read([after(6, row) for row in truth], truth)
    assert whole > 0.45 and ill > 0.25


def test_one_band_of_a_person_tells_hardly_more_than_everybody_knows():
    truth, own = population()
    known, _ = read([np.ones(len(ROWS), dtype=bool)] * PERSONS, truth)
    lying, ill = read([after(1, row) for row in truth], truth)
    places = [bands.place_of(part) for part in own]
    table = np.array([bands.bands_at(part, TERMS.bands, LAW) for part in PARTS])
    candidates = [table[:, at] == table[row, at] for at, row in zip(places, truth, strict=True)]
    honest, honest_ill = read(candidates, truth)
    assert TERMS.scores_of_a_person == 1 and TERMS.period_days == 365
    assert honest < known + 0.025 and lying < known + 0.05
    assert ill == honest_ill == 0.0


@pytest.mark.parametrize("exact", [True, False])
def test_the_ration_ends_the_series_of_questions_that_the_attack_needs(tmp_path, exact):
    """A person signs every time; the side that is asked counts."""
    desk, fund = Identity("desk", b"d" * 32), Identity("fund", b"f" * 32)
    signers = {"desk": desk.card.verifying.hex()}
    terms = TERMS.model_copy(update={"signers": signers, "exact": exact})
    wanted = {"insurer": "insurer", "fund": "fund", "person": "ann", "group": "a" * 64}
    wanted |= {"purpose": "offer a renewal", "before": TODAY, "expires": TODAY + timedelta(days=9)}
    with ExitStack() as stack:
        log = stack.enter_context(party_log(fund, tmp_path))
        side = ScoredSide(fund, "fund", terms, "a" * 64, LAW, Linear({"ann": 0.3}), log)
        asked, replies = AskedSide(side, {}, []), 0
        for place in (200, 210, 220):
            consent = consented(desk, "desk", wanted)
            sent = bands.asked(place, bytes.fromhex(consent.digest), b"b" * 32)
            try:
                asked.answer(BroughtQuestion(consent, "insurer", "insurer", "band", sent), TODAY)
                replies += 1
            except PolicyError as refusal:
                assert refusal.rule == "ration"
    assert replies == TERMS.scores_of_a_person == 1


def aimed(sums: np.ndarray) -> tuple[float, float]:
    """(share of the ill found, share of those found who are) by the one place that finds most of them.

    sums: (rows of values,) of the score on the link's scale, with an own part of 0; whoever is more likely
    than not to be ill in a band is taken to be."""
    best = (0.0, 0.0)
    scales = [LAW.eta(edge) for edge in TERMS.bands]
    for place in range(bands.PLACES):
        own = bands.STEP * (place - bands.PLACES // 2)
        band = np.searchsorted(scales, sums + own, side="right")
        weights = np.bincount(band, WEIGHTS, len(scales) + 1)
        likely = np.bincount(band, WEIGHTS * ILL, len(scales) + 1) > weights / 2
        right = float(WEIGHTS[ILL & likely[band]].sum())
        if right > best[0] * WEIGHTS[ILL].sum():
            best = (right / WEIGHTS[ILL].sum(), right / WEIGHTS[likely[band]].sum())
    return best


def test_one_band_of_a_glm_aimed_at_a_condition_finds_two_of_three_who_have_it():
    found, right = aimed(PARTS)
    assert (round(found, 2), round(right, 2)) == (0.66, 0.53)


def grown(folder: Path) -> Trees:
    """Trees on the fund's columns and three of the insurer's, grown on 20,000 persons."""
    rng = np.random.default_rng(1)
    row = rng.choice(len(ROWS), 20_000, p=WEIGHTS)
    frame = pd.DataFrame(ROWS[row], columns=list(COLUMNS)).assign(
        **{name: rng.integers(0, 5, len(row)) for name in OWN}
    )
    eta = -2.3 + PARTS[row] + 0.15 * frame[OWN[0]] - 0.2 * (frame[OWN[1]] == 1)
    frame.assign(y=rng.poisson(np.exp(eta))).to_csv(folder / "t.csv", index=False)
    content = {
        "name": "trees",
        "data": {"path": str(folder / "t.csv"), "target": "y", "features": [*COLUMNS, *OWN]},
        "model": {"kind": "trees", "family": "poisson", "trees": 60, "depth": 4},
        "parties": {"split": "uniform", "count": 3},
        "protection": {"sums": "clear"},
        "arms": {"run": ["federated"], "replicates": 0},
    }
    content["model"] |= {"learning_rate": 0.1, "validation_share": 0.0}
    study = perform(Experiment.model_validate(content))
    model = study.arms["federated"].models["all"]["model"].model
    assert isinstance(model, Trees)
    return model


def test_one_band_of_trees_whose_lines_are_made_up_finds_all_who_have_a_condition(tmp_path):
    """The asker reads of each group the line that parts the ill from the others best, as if its own cuts
    led there; with own columns as they are, the place alone made up, it finds fewer."""
    model = grown(tmp_path)
    frame = pd.DataFrame(ROWS, columns=list(COLUMNS)).assign(**dict.fromkeys(OWN, 0))
    codes = {str(k): row for k, row in enumerate(binned(frame, model.cuts))}
    fund = SharedTrees(model, "fund", frozenset(COLUMNS), codes)
    secret = b"s" * 32
    groups = [g for g in fund.asked_groups if g.theirs and any(g.ways)]
    masks = sum(leaves._mask(secret, number) for number in range(len(groups)))
    alone = np.array([leaves.amount(leaves.asked_share(fund, k, secret) + masks) for k in codes])
    led = np.array([[leaves._leads(g.theirs, row) for g in groups] for row in codes.values()])
    lines = np.array([[max(*g.values, 0), min(*g.values, 0)] for g in groups]) * leaves.UNIT
    likely = (WEIGHTS[ILL] @ led[ILL] / WEIGHTS[ILL].sum()) > WEIGHTS[~ILL] @ led[~ILL] / (
        WEIGHTS[~ILL].sum()
    )
    made_up = aimed(alone + led @ np.where(likely, lines[:, 0], lines[:, 1]))
    assert made_up == pytest.approx((1.0, 1.0), abs=0.02)
    assert aimed(model.eta(frame)) == pytest.approx((0.35, 0.61), abs=0.02)


@pytest.mark.parametrize("one_key", [False, True])
def test_elements_of_one_group_of_leaves_tell_the_other_side_s_cuts_under_one_key_alone(
    monkeypatch, one_key
):
    """The asker sends the first group's element, and in place of the second's one of another of its lines."""
    if one_key:
        monkeypatch.setattr(leaves, "_key", lambda secret, group: derived_key(secret, b"all"))
    read = []
    for stays in range(8):
        ours, theirs = sides_of(model_of(5), [3, 1, stays, 2], "insurer")
        first = next(g for g in ours.asker_groups if g.theirs and any(g.ways))
        none = len(first.values)
        texts = [leaves._text(b"session", 0, choice) for choice in (0, none)]
        rest = len(ours.choices("ann")[1]) - 2
        key = derived_key(b"b" * 32, b"own")
        sent = blind(texts + [texts[0]] * rest, key).tobytes()
        reply = leaves.answered(theirs, "ann", b"session", b"s" * 32, sent)
        size = SIZE + leaves.LINE * (none + 1)
        elements = encoded(reply[:SIZE], reply[size : size + SIZE])
        values = finalize(texts, key, elements)
        lines = [reply[SIZE + leaves.LINE * k :][: leaves.LINE] for k in (0, none)]
        one, other = (leaves._unhidden(line, v) for line, v in zip(lines, values, strict=True))
        led = leaves._leads(first.theirs, theirs.persons["ann"])
        read.append(((one - other) % leaves.MODULUS == led * first.values[0] % leaves.MODULUS, led))
    assert {led for _, led in read} == {False, True}
    assert all(right for right, _ in read) == one_key
    assert any(right for right, _ in read) == one_key
