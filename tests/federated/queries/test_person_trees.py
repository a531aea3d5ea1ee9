"""Scores of one person by trees of two sides: shares of leaves, then the band, and nothing else."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from federated.cli.desk import identity_of
from federated.joined.sums.factors import Role
from federated.link.party_log import party_log
from federated.queries.person import asker, leaves
from federated.queries.person.asked import AskedSide, BroughtQuestion
from federated.queries.person.leaves import SharedTrees
from federated.queries.person.sides import ScoredSide
from federated.queries.person.terms import ScoreTerms, consent_to_score
from federated.queries.person.trial import ScoringTrial, read_consent
from federated.run import run
from lab.errors import ConfigurationError, PeerError, PolicyError
from lab.models import files
from lab.models.design import Feature
from lab.models.families import Family
from lab.models.glm import Task
from lab.models.tree_model import LEAF, Cuts, Tree, Trees
from secure_agg.identity import Identity
from secure_agg.ristretto import SIZE
from tests.federated.queries.test_person import PURPOSES, TODAY
from tests.federated.study.test_joined import persons
from tests.federated.study.test_joined_trees import trees

COLUMNS = ("age", "region", "stays", "drugs")
FUND = frozenset(COLUMNS[2:])
SESSION, BLINDING, SECRET = b"session", b"b" * 32, b"s" * 32
LAW = Family.make("poisson")


def tree_of(rng: np.random.Generator, depth: int) -> Tree:
    """A tree whose nodes are cut, or not, as it falls out."""
    feature, left, bins = [0], [0], ["0"]
    level = [0]
    for _ in range(depth):
        below = []
        for node in level:
            if rng.random() < 0.2:
                continue
            feature[node] = int(rng.integers(1, len(COLUMNS) + 1))
            left[node], bins[node] = len(feature), f"{int(rng.integers(1, 255)):x}"
            below += [len(feature), len(feature) + 1]
            for column in (feature, left, bins):
                column += [type(column[0])(0)] * 2
        level = below
    value = rng.normal(0, 0.4, len(feature))
    return Tree(
        feature=tuple(f - 1 for f in feature),
        left=tuple(left),
        bins=tuple(b if f else "0" for b, f in zip(bins, feature, strict=True)),
        value=tuple(value),
    )


def model_of(seed: int, count: int = 4, depth: int = 3) -> Trees:
    rng = np.random.default_rng(seed)
    edges = tuple(float(k) for k in range(7))
    cuts = tuple(Cuts(feature=Feature(column=c), edges=edges) for c in COLUMNS)
    task = Task(target="claims", family="poisson")
    grown = tuple(tree_of(rng, depth) for _ in range(count))
    return Trees(task=task, cuts=cuts, intercept=-0.3, trees=grown)


def sides_of(model: Trees, codes: Any, role: Role) -> tuple[SharedTrees, SharedTrees]:
    """(the asker, who is asked), each with the bins of its own columns."""
    held = {"fund": FUND, "insurer": frozenset(COLUMNS) - FUND}
    own = {
        name: SharedTrees(
            model,
            name,
            columns,
            {"ann": np.where([c in columns for c in COLUMNS], codes, 255).astype(np.uint8)},
        )
        for name, columns in held.items()
    }
    return own[role], own["fund" if role == "insurer" else "insurer"]


def shared(ours: SharedTrees, theirs: SharedTrees) -> tuple[int, int]:
    """Both sides' shares of a person's score."""
    own, choices = ours.choices("ann")
    sent = leaves.asked(choices, SESSION, BLINDING)
    reply = leaves.answered(theirs, "ann", SESSION, SECRET, sent)
    own += leaves.read(ours.asker_groups, choices, reply, SESSION, BLINDING, "fund")
    return own, leaves.asked_share(theirs, "ann", SECRET)


@examples(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 7), min_size=4, max_size=4))
@pytest.mark.parametrize("role", ["insurer", "fund"])
def test_shares_of_both_sides_add_up_to_the_score_of_all_columns(role, seed, codes):
    model = model_of(seed)
    ours, theirs = shared(*sides_of(model, codes, role))
    eta = np.full(1, model.intercept)
    for tree in model.trees:
        tree.add_values(np.array([codes], dtype=np.uint8), eta)
    assert leaves.amount(ours + theirs) == pytest.approx(eta[0], abs=1e-6)


def test_an_asker_reads_one_line_of_a_group_and_no_other():
    """Whatever other line it opens with what it has, it finds no value that may stand there."""
    ours, theirs = sides_of(model_of(5), [3, 1, 6, 2], "insurer")
    _, choices = ours.choices("ann")
    sent = leaves.asked(choices, SESSION, BLINDING)
    reply = leaves.answered(theirs, "ann", SESSION, SECRET, sent)
    read = partial(
        leaves.read, ours.asker_groups, session=SESSION, blinding=BLINDING, sender="fund"
    )
    whole, tried = read(choices, reply), 0
    asked_about = [group for group in ours.asker_groups if leaves._is_asked(group)]
    for at, (group, choice) in enumerate(zip(asked_about, choices, strict=True)):
        values = (*group.values, 0)
        for other in set(range(len(values))) - {choice}:
            found = read([*choices[:at], other, *choices[at + 1 :]], reply) - whole
            possible = {
                0,
                values[other] - values[choice],
            }  # as the other side's cuts lead there or not
            assert found % leaves.MODULUS not in {value % leaves.MODULUS for value in possible}
            tried += 1
    assert tried > 10


@pytest.mark.parametrize("reply", [b"", b"short", b"\xff" * 5000])
def test_what_are_no_lines_is_refused(reply):
    ours, theirs = sides_of(model_of(5), [3, 1, 6, 2], "insurer")
    _, choices = ours.choices("ann")
    with pytest.raises(PeerError, match="fund: sent what"):
        leaves.read(ours.asker_groups, choices, reply, SESSION, BLINDING, "fund")
    with pytest.raises(ValueError, match=r"^$"):
        leaves.answered(theirs, "ann", SESSION, SECRET, b"x" * SIZE * (len(choices) + 1))


def test_trees_whose_scores_may_be_beyond_the_shares_are_refused():
    model = model_of(5).model_copy(update={"intercept": 15.0})
    with pytest.raises(ConfigurationError, match=r"shared up to 16"):
        SharedTrees(model, "fund", FUND, {})


# Consents and rations, which count a score of two letters once.


DESK = Identity("desk", b"d" * 32)
TERMS = ScoreTerms(
    purposes={"offer a renewal": "insurer"},
    bands=(0.5, 1.0),
    kinds=("glm", "trees"),
    signers={"desk": DESK.card.verifying.hex()},
    scores_of_a_person=2,
)


def scored(stack: ExitStack, folder: Path, name: Role) -> ScoredSide:
    ours, theirs = sides_of(model_of(5), [3, 1, 6, 2], "insurer")
    identity = Identity(name, name.encode().ljust(32, b"."))
    log = stack.enter_context(party_log(identity, folder / name))
    return ScoredSide(
        identity, name, TERMS, "a" * 64, LAW, ours if name == "insurer" else theirs, log
    )


def signed() -> Any:
    whose = {"asker": "insurer", "asked": "fund", "person": "ann", "purpose": "offer a renewal"}
    return consent_to_score(DESK, TERMS, **whose, model="a" * 64, today=TODAY)


def test_a_score_of_two_letters_is_one_score_and_each_letter_is_taken_once(tmp_path):
    with ExitStack() as stack:
        ours, theirs = (scored(stack, tmp_path, name) for name in ("insurer", "fund"))
        fund, consent = AskedSide(theirs, {}, []), signed()

        def bring(step: Any, sent: bytes, letter: str, word: Any = consent) -> bytes:
            brought = BroughtQuestion(word, "insurer", "insurer", step, sent, letter)
            return fund.answer(brought, TODAY)[0]

        first = asker.question(ours, consent)
        with pytest.raises(PolicyError, match="was not used for a question about leaves"):
            bring("band", first.sent[:SIZE], "2")
        reply = bring("leaves", first.sent, "1")
        assert bring("leaves", first.sent, "1") == reply  # the same letter, brought again
        with pytest.raises(PolicyError, match="was used before"):
            bring("leaves", first.sent, "another")
        second = asker.go_on(ours, first, reply)
        told = [asker.read(ours, second, bring("band", second.sent, "2"), TODAY)[0] for _ in "ab"]
        assert told[0] == told[1]
        with pytest.raises(PolicyError, match="was used before"):
            bring("band", second.sent, "another")
        again = signed()
        bring("leaves", asker.question(ours, again).sent, "3", again)
        with pytest.raises(PolicyError, match="was told 2 of this person's scores"):
            bring("leaves", first.sent, "4", signed())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    arms = {"run": ["federated"], "replicates": 0}
    values = trees(folder, protection={"sums": "clear"}, arms=arms)
    study = run(values, runs=folder / "runs", track=False)
    assert study.folder is not None
    return study.folder


@pytest.mark.parametrize("exact", [False, True])
def test_scores_of_a_run_are_those_of_its_trees_on_the_joined_table(finished, tmp_path, exact):
    terms = ScoreTerms(purposes=PURPOSES, bands=(0.5, 1.0, 2.0), exact=exact, kinds=("trees",))
    whole, model = persons(), files.read(finished)
    assert isinstance(model, Trees) and any(f != LEAF for t in model.trees for f in t.feature)
    rows = whole.iloc[:6]
    scores = model.predict(rows.astype({"region": "category", "chronic": "category"}))
    with ExitStack() as stack:
        trial = ScoringTrial(finished, tmp_path, terms, partial(identity_of, tmp_path), stack)
        for person, score in zip(rows["person"], scores, strict=True):
            for purpose in PURPOSES:  # each side asks the other
                consent = read_consent(trial.consent(person, purpose, TODAY))
                told = trial.ask(consent, TODAY).answer
                if exact:
                    assert float(told) == pytest.approx(score, rel=1e-5)
                    continue
                places = np.searchsorted(terms.bands, score * np.exp([-1 / 30, 1 / 30]))
                assert told in {terms.band(place) for place in places}
