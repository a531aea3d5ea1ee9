"""Scores of one person across two sides: the band of the pooled score, consented to, rationed, logged at both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from federated.cli.desk import identity_of
from federated.link.consent import ConsentToken, consented
from federated.link.party_log import LOG, party_log
from federated.queries.person import asker, bands
from federated.queries.person.asked import AskedSide, BroughtQuestion, history_of
from federated.queries.person.sides import Linear, ScoredSide
from federated.queries.person.terms import ScoreTerms
from federated.queries.person.trial import ScoringTrial, read_consent
from federated.run import run
from federated.study.experiment import Experiment
from lab.audit.log_format import entries, read_lines
from lab.errors import ConfigurationError, PeerError, PolicyError
from lab.models import files
from lab.models.families import Family
from lab.models.prediction import predict
from secure_agg.identity import Identity
from tests.federated.cli.test_main import lab
from tests.federated.study.test_joined import BOTH, persons, written

TODAY, LAW = date(2026, 3, 1), Family.make("poisson")
EDGES = (0.1, 0.2, 0.4)
PURPOSES = {"offer a renewal": "insurer", "invite to a care programme": "fund"}
DESK = Identity("desk", b"d" * 32)
OURS = {"ann": -2.0, "bob": -1.1, "cho": 0.4, "far": 40.0, "own": 0.0}
THEIRS = {"ann": -0.6, "bob": 0.3, "cho": 0.9, "far": 0.0}


def brought(consent: ConsentToken, sent: bytes, **changes: Any) -> BroughtQuestion:
    """A question that the insurer brings."""
    whose: dict[str, Any] = {"asker": "insurer", "role": "insurer", "step": "band"}
    return BroughtQuestion(consent, sent=sent, **(whose | changes))


class Pair:
    """Both sides with their logs; insurer asks, fund is asked."""

    def __init__(self, folder: Path, stack: ExitStack, **changes: Any) -> None:
        signers = {"desk": DESK.card.verifying.hex()}
        terms = {"purposes": PURPOSES, "bands": EDGES, "signers": signers} | changes
        self.terms, self.folder = ScoreTerms.model_validate(terms), folder
        self.insurer, self.fund = (
            self._side(name, parts, stack) for name, parts in (("insurer", OURS), ("fund", THEIRS))
        )

    def _side(self, name: str, parts: dict[str, float], stack: ExitStack) -> ScoredSide:
        identity = Identity(name, name.encode().ljust(32, b"."))
        log = stack.enter_context(party_log(identity, self.folder / name))
        return ScoredSide(identity, name, self.terms, "a" * 64, LAW, Linear(parts), log)

    def asked(self) -> AskedSide:
        """The fund, as it is after a restart."""
        lines = entries(read_lines(self.folder / "fund" / LOG))
        return AskedSide(self.fund, {}, history_of(lines))

    def consent(self, person: str = "ann", **changes: Any) -> ConsentToken:
        wanted = {"insurer": "insurer", "fund": "fund", "person": person, "group": "a" * 64}
        wanted |= {"purpose": "offer a renewal", "before": TODAY}
        wanted |= {"expires": TODAY + timedelta(days=7)}
        return consented(DESK, "desk", wanted | changes)

    def ask(self, consent: ConsentToken, today: date = TODAY) -> str:
        own = asker.question(self.insurer, consent)
        reply, theirs = self.asked().answer(brought(consent, own.sent), today)
        answer, ours = asker.read(self.insurer, own, reply, today)
        for receipt, side in ((ours, self.insurer), (theirs, self.fund)):
            assert receipt.holds(side.identity.card.verifying) and receipt.by == side.name
        assert (ours.answer, theirs.answer) == (answer, "not told")
        return answer


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Callable[..., Pair]]:
    with ExitStack() as stack:
        yield lambda **changes: Pair(tmp_path, stack, **changes)


@given(
    st.floats(-15.9, 15.9),
    st.floats(-5, 5),
    st.lists(st.floats(0.001, 0.99), min_size=1, max_size=6, unique=True).map(sorted),
    st.sampled_from([LAW, Family.make("binomial")]),
)
def test_a_band_is_that_of_the_score_or_of_one_half_a_step_away(ours, theirs, edges, law):
    band = bands.bands_at(theirs, edges, law)[bands.place_of(ours)]
    scales = np.array([law.eta(edge) for edge in edges])
    half = bands.STEP / 2 + 1e-9
    low, high = (np.searchsorted(scales, ours + theirs + d, side="right") for d in (-half, half))
    assert low <= band <= high


@examples(max_examples=10, deadline=None)
@given(st.floats(-15.9, 15.9), st.floats(-5, 5))
def test_the_asker_reads_the_band_at_its_place_and_no_other(ours, theirs):
    table, place = bands.bands_at(theirs, EDGES, LAW), bands.place_of(ours)
    sent = bands.asked(place, b"session", b"b" * 32)
    reply = bands.answered(table, b"session", b"s" * 32, sent)
    read = partial(bands.read, reply, session=b"session", blinding=b"b" * 32, sender="fund")
    assert read(place) == table[place]
    others = [read(other) == table[other] for other in range(place % 7, bands.PLACES, 7)]
    assert sum(others) <= 8  # a guess of one byte in 256: of 73, more than 8 once in 10**9


def test_scores_are_told_as_bands(pair):
    one = pair()
    told = [one.ask(one.consent(person)) for person in ("ann", "bob", "cho")]
    assert told == ["below 0.1", "0.4 and above", "0.4 and above"]


def test_an_exact_score_is_told_where_the_terms_say_so(pair):
    one = pair(exact=True)
    assert float(one.ask(one.consent("bob"))) == pytest.approx(np.exp(-0.8), rel=1e-5)


def test_nothing_of_the_question_tells_the_asker_s_part(pair):
    """The same place twice is two questions that have nothing in common."""
    one = pair()
    sent = [asker.question(one.insurer, one.consent()).sent for _ in range(2)]
    assert sent[0] != sent[1] and {len(each) for each in sent} == {32}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"expires": TODAY - timedelta(days=1)}, "expired on 2026-02-28"),
        ({"expires": TODAY + timedelta(days=90)}, "more than the charter's 30 days"),
        ({"purpose": "employment"}, "refuses the purpose 'employment'"),
        ({"purpose": "curiosity"}, "'curiosity' is no purpose"),
        ({"purpose": "invite to a care programme"}, "a purpose of the fund, who asks for it"),
        ({"group": "b" * 64}, "for scores of another model"),
        ({"fund": "another"}, "is not for insurer to ask fund"),
        ({"person": "eve"}, "insurer has no complete row of this person"),
        ({"person": "own"}, "fund has no complete row of this person"),
        ({"person": "far"}, "beyond the grid"),
    ],
)
def test_what_was_not_consented_to_is_refused_with_one_line_and_nothing_is_told(
    pair, changes, reason
):
    one = pair(refused_purposes=["employment"])
    with pytest.raises(PolicyError, match=reason) as refusal:
        one.ask(one.consent(**changes))
    assert "\n" not in str(refusal.value)
    assert not any(line.kind == "answer" for line in entries(read_lines(one.folder / "fund" / LOG)))


def test_a_consent_that_was_altered_or_used_before_is_refused(pair):
    one = pair()
    consent = one.consent()
    with pytest.raises(PolicyError, match="was altered"):
        one.ask(consent.model_copy(update={"person": "bob"}))
    one.ask(consent)
    with pytest.raises(PolicyError, match="used before"):
        one.ask(consent, TODAY + timedelta(days=1))


def test_a_person_s_scores_are_rationed_over_restarts(pair):
    one = pair(token_days=90, period_days=30)
    long = {"expires": TODAY + timedelta(days=40)}
    one.ask(one.consent(**long))
    with pytest.raises(PolicyError, match=r"1 of this person's scores in 30 days.*2026-03-31"):
        one.ask(one.consent(**long), TODAY + timedelta(days=29))
    assert one.ask(one.consent("bob", **long), TODAY + timedelta(days=29)) == "0.4 and above"
    assert one.ask(one.consent(**long), TODAY + timedelta(days=30)) == "below 0.1"


def test_an_asker_s_scores_of_a_day_are_rationed(pair):
    one = pair(asker_a_day=1)
    one.ask(one.consent())
    with pytest.raises(PolicyError, match="was told 1 score today"):
        one.ask(one.consent("bob"))
    assert one.ask(one.consent("bob"), TODAY + timedelta(days=1)) == "0.4 and above"


def test_what_is_no_place_and_no_table_is_blamed_on_its_sender(pair):
    one = pair(scores_of_a_person=9)
    consent = one.consent()
    good = asker.question(one.insurer, consent).sent
    for sent in (b"", b"\xff" * 32, bytes(31), good + good):
        with pytest.raises(PeerError, match="insurer: sent what is no blinded place"):
            one.asked().answer(brought(one.consent(), sent), TODAY)
    own = asker.question(one.insurer, consent)
    for reply in (b"", b"\xff" * 544):
        with pytest.raises(PeerError, match="fund: sent what is no"):
            asker.read(one.insurer, own, reply, TODAY)


def test_no_log_and_no_letter_names_a_person(pair):
    one = pair()
    one.ask(one.consent())
    logs = [(one.folder / name / LOG).read_text() for name in ("insurer", "fund")]
    assert not any('"ann"' in log for log in logs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of joined sides."""
    folder = tmp_path_factory.mktemp("joined")
    values = written(folder) | {"protection": {"sums": "clear"}}
    values["arms"] = {"run": ["insurer", "federated"], "replicates": 0}
    values["query"] = [{"sql": "select region, count(*) from insurer join fund group by region"}]
    study = run(Experiment.model_validate(values), runs=folder / "runs", track=False)
    assert study.folder is not None
    return study.folder


def test_bands_of_a_run_are_those_of_its_model_on_the_joined_table(finished, tmp_path):
    terms = ScoreTerms(purposes=PURPOSES, bands=(0.5, 1.0, 2.0))
    whole, model = persons(), files.read(finished)
    rows = whole.iloc[:12]
    scores = model.predict(rows.astype({"region": "category", "chronic": "category"}))
    with ExitStack() as stack:
        trial = ScoringTrial(finished, tmp_path, terms, partial(identity_of, tmp_path), stack)
        for person, score in zip(rows["person"], scores, strict=True):
            told = []
            for purpose in PURPOSES:  # each side asks the other
                consent = read_consent(trial.consent(person, purpose, TODAY))
                told.append(trial.ask(consent, TODAY).answer)
            places = np.searchsorted(terms.bands, score * np.exp([-1 / 32, 1 / 32]))
            assert set(told) <= {terms.band(place) for place in places}


def test_questions_of_an_experiment_of_joined_sides_enter_its_result(finished):
    (answer,) = json.loads((finished / "result.json").read_text())["answers"]
    assert sum(count or 0 for _, count in answer["rows"]) == BOTH


@pytest.mark.slow
def test_lab_score_tells_scores_with_consents_and_says_by_which_model(finished, tmp_path):
    person = persons()["person"].iloc[0]
    told = lab("score", finished, "--sides", tmp_path / "trial", "--person", person)
    assert told.returncode == 0, told.stderr
    assert "by models/federated.json" in told.stdout and "refused" not in told.stdout
    table = tmp_path / "own.csv"
    persons()[["years", "age", "region"]].to_csv(table, index=False)
    without = lab("score", finished, table)
    assert without.returncode == 2 and "--side insurer" in without.stderr


def test_an_insurer_scores_by_its_own_columns_when_the_fund_has_left(finished, tmp_path):
    table = tmp_path / "own.csv"
    persons()[["years", "age", "region"]].to_csv(table, index=False)
    scored, notes = predict(files.model_file(finished, "insurer"), str(table))
    assert scored["prediction"].gt(0).all()
    assert "by insurer.json: the model of the insurer's columns alone" in notes
    with pytest.raises(ConfigurationError, match="no model of one side's columns for 'fund'"):
        files.model_file(finished, "fund")


def test_terms_that_do_not_fit_are_refused(finished, tmp_path):
    with pytest.raises(ConfigurationError, match="edges must rise"):
        ScoreTerms.read(_written(tmp_path, "[0.4, 0.2]"))
    terms = ScoreTerms.read(_written(tmp_path, "[-1.0, 0.2]"))
    with ExitStack() as stack, pytest.raises(ConfigurationError, match="must lie between 0"):
        ScoringTrial(finished, tmp_path, terms, partial(identity_of, tmp_path), stack)


def _written(folder: Path, edges: str) -> Path:
    file = folder / "scores.toml"
    file.write_text(f'bands = {edges}\n[purposes]\n"offer a renewal" = "insurer"\n')
    return file
