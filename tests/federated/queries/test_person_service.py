"""Scores of one person as services of two sides: what an attacker, a crash and a changed table meet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federated.joined.sums.factors import Role
from federated.link.consent import ConsentToken
from federated.link.letters import Letter, packed, unpacked
from federated.link.party_log import LOG, party_log
from federated.link.services.process import DONE, REFUSED, LinkMember, _refusal, ask
from federated.queries.person import bands
from federated.queries.person.asked import history_of
from federated.queries.person.asker import question
from federated.queries.person.service import COUNTED, REPLY, SCORE, ScoreRules, ScoreService
from federated.queries.person.sides import Linear, ScoredSide
from federated.queries.person.terms import OwnScores, ScoreTerms, consent_to_score
from lab.audit.log_format import entries, read_lines
from lab.errors import ConfigurationError, ContractError, LabError, PeerError, PolicyError
from lab.files import canonical
from lab.models.families import Family
from secure_agg.errors import SecureAggError
from secure_agg.identity import Identity
from tests.federated.queries.test_person_trees import model_of, sides_of

DESK, LAW, TODAY = Identity("desk", b"d" * 32), Family.make("poisson"), date(2026, 3, 1)
SIDES: dict[str, Role] = {"insurer": "insurer", "fund": "fund"}
OTHER = {"insurer": "fund", "fund": "insurer"}
IDENTITIES = {name: Identity(name, name.encode().ljust(32, b".")) for name in SIDES}
CARDS = {name: identity.card for name, identity in IDENTITIES.items()}
GLM, TREES = "a" * 64, "b" * 64
TERMS = ScoreTerms(
    purposes={"offer a renewal": "insurer", "invite": "fund"},
    bands=(0.1, 0.2, 0.4),
    kinds=("glm", "trees"),
    signers={"desk": DESK.card.verifying.hex()},
)


class Line:
    """Carries calls between services of this process; change: what an attacker does to a call."""

    def __init__(self) -> None:
        self.services: dict[str, ScoreService] = {}
        self.change: Callable[[str, bytes], bytes] | None = None

    def call(self, to: str, service: str, data: bytes, patience: float) -> bytes:
        assert service == SCORE and patience > 0
        try:
            reply = self.services[to].answer(data)
            return DONE + (reply if self.change is None else self.change(to, reply))
        except (LabError, SecureAggError) as error:
            return REFUSED + _refusal(error)


class Rig:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack, self.line = folder, stack, Line()
        ours, theirs = sides_of(model_of(5), [3, 1, 6, 2], "insurer")
        self.holdings: dict[tuple[str, str], Any] = {
            ("insurer", GLM): Linear({"ann": -2.0, "bob": -1.1}),
            ("fund", GLM): Linear({"ann": -0.6, "bob": 0.3}),
            ("insurer", TREES): ours,
            ("fund", TREES): theirs,
        }
        self.logs: dict[str, Any] = {}
        for name in SIDES:
            self.start(name)

    def start(
        self,
        name: str,
        charter: str = "c" * 64,
        approval: bool = False,
        answers: OwnScores | None = None,
    ) -> None:
        """A side's process, or again after it was killed."""
        if name in self.logs:
            self.logs.pop(name).close()
        log = self.logs[name] = self.stack.enter_context(
            party_log(IDENTITIES[name], self.folder / name)
        )
        member = LinkMember(IDENTITIES[name], CARDS, self.line, log, charter)  # type: ignore[arg-type]

        def side_of(digest: str, peer: str) -> ScoredSide:
            holding = self.holdings[name, digest]
            if isinstance(holding, Exception):
                raise holding
            return ScoredSide(IDENTITIES[name], SIDES[name], TERMS, digest, LAW, holding, log)

        peer = OTHER[name]
        terms = TERMS if answers is None else answers.tightened(TERMS)
        rules = ScoreRules({peer: SIDES[peer]}, terms, True, approval)
        past = history_of(list(entries(read_lines(self.folder / name / LOG))))
        home = self.folder / name / "scores"
        self.line.services[name] = ScoreService(home, member, rules, side_of, past, lambda: TODAY)

    def consent(self, person: str = "ann", model: str = GLM, **changes: Any) -> ConsentToken:
        whose: dict[str, Any] = {"asker": "insurer", "asked": "fund", "purpose": "offer a renewal"}
        return consent_to_score(
            DESK, TERMS, person=person, model=model, today=TODAY, **(whose | changes)
        )

    def ask(self, consent: ConsentToken) -> Any:
        data = canonical(consent.model_dump(mode="json"))
        return json.loads(self.line.services["insurer"].ask(data))

    def bring(self, consent: ConsentToken, step: bytes, sent: bytes) -> bytes:
        """What an insurer that keeps to no protocol is told."""
        service = self.line.services["insurer"]
        content = {"consent": canonical(consent.model_dump(mode="json")), "step": step}
        content |= {"sent": sent}
        number = service._numbers.next()
        letter = Letter(service._session, number, "insurer", "fund", SCORE, packed(content))
        data = letter.sealed(IDENTITIES["insurer"], CARDS["fund"])
        reply = service._box.read(ask(self.line, "fund", SCORE, data), REPLY, "fund")  # type: ignore[arg-type]
        return unpacked(reply.content, "fund")["reply"]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(tmp_path, stack)


def place(part: float, consent: ConsentToken) -> bytes:
    return bands.asked(bands.place_of(part), bytes.fromhex(consent.digest), b"b" * 32)


def test_a_consent_to_a_glm_s_score_tells_one_band_whatever_the_step_is_called(rig: Rig) -> None:
    consent = rig.consent()
    rig.bring(consent, b"band", place(-2.0, consent))
    with pytest.raises(PeerError, match="asks about leaves of a model without"):
        rig.bring(consent, b"leaves", place(-1.0, consent))
    with pytest.raises(PolicyError, match="was used before"):
        rig.bring(consent, b"band", place(-1.0, consent))


def test_another_consent_of_the_same_number_gives_no_score_back(rig: Rig) -> None:
    first = rig.consent()
    rig.ask(first)
    other = rig.consent(model=TREES).model_copy(update={"number": first.number}).signed(DESK)
    with pytest.raises(PolicyError, match="was used before"):
        rig.ask(other)
    with pytest.raises(PolicyError, match="was told 1 of this person's scores"):
        rig.ask(rig.consent())


def test_nothing_of_a_table_is_told_to_whom_has_no_consent(rig: Rig) -> None:
    rig.holdings["fund", GLM] = ContractError("t.csv: row 3: hiv must be 0 or 1, got 7")
    expired = rig.consent().model_copy(update={"expires": TODAY - timedelta(days=1)}).signed(DESK)
    with pytest.raises(PolicyError, match="the consent expired"):
        rig.bring(expired, b"band", b"")
    with pytest.raises(PolicyError, match=r"fund can't score by this model now; its owner"):
        rig.ask(rig.consent())
    assert "hiv" not in (rig.folder / "fund" / LOG).read_text()


def test_a_row_that_changed_between_two_letters_ends_the_question(rig: Rig) -> None:
    consent = rig.consent(model=TREES)
    first = question(_side(rig, "insurer"), consent)
    reply = rig.bring(consent, b"leaves", first.sent)
    assert rig.bring(consent, b"leaves", first.sent) == reply
    theirs = sides_of(model_of(5), [3, 1, 2, 2], "insurer")[1]
    rig.holdings["fund", TREES] = theirs
    rig.start("fund")
    with pytest.raises(PolicyError, match="row has changed since the question began"):
        rig.bring(consent, b"leaves", first.sent)
    with pytest.raises(PolicyError, match="row has changed since the question began"):
        rig.bring(consent, b"band", place(-1.0, consent))


def _side(rig: Rig, name: str) -> ScoredSide:
    holding, log = rig.holdings[name, TREES], rig.logs[name]
    return ScoredSide(IDENTITIES[name], SIDES[name], TERMS, TREES, LAW, holding, log)


def test_random_numbers_of_leaves_are_drawn_anew_where_the_log_is_gone(rig: Rig) -> None:
    consent = rig.consent(model=TREES)
    first = question(_side(rig, "insurer"), consent)
    before = rig.bring(consent, b"leaves", first.sent)
    rig.logs.pop("fund").close()
    for path in list((rig.folder / "fund").glob("log*")):
        path.rename(path.with_name(f"moved {path.name}"))
    with pytest.raises(ConfigurationError, match="1 letters about scores were answered"):
        rig.start("fund")
    (rig.folder / "fund" / "scores" / COUNTED).unlink()
    rig.logs.pop("fund").close()
    rig.start("fund")
    after = rig.bring(consent, b"leaves", first.sent)
    same = np.frombuffer(before, np.uint8) == np.frombuffer(after, np.uint8)
    assert same.mean() < 0.1


def test_an_answer_that_is_none_is_not_asked_for_again(rig: Rig) -> None:
    def none(to: str, reply: bytes) -> bytes:
        letter = rig.line.services["insurer"]._box.read(reply, REPLY, "fund")
        content = unpacked(letter.content, "fund") | {"reply": b"\xff" * (32 + bands.PLACES)}
        other = Letter(letter.session, letter.number, "fund", "insurer", REPLY, packed(content))
        return other.sealed(IDENTITIES["fund"], CARDS["insurer"])

    consent, rig.line.change = rig.consent(), none
    with pytest.raises(PeerError, match="fund: sent what is no"):
        rig.ask(consent)
    rig.line.change = None
    with pytest.raises(PolicyError, match="so it is not asked again"):
        rig.ask(consent)


def test_an_altered_copy_of_a_consent_blocks_nothing(rig: Rig) -> None:
    consent = rig.consent()
    with pytest.raises(PolicyError, match="was altered"):
        rig.ask(consent.model_copy(update={"signature": "0" * 128}))
    assert rig.ask(consent)["score"] == "below 0.1"


@pytest.mark.parametrize("model", [GLM, TREES])
def test_a_question_whose_answer_was_lost_goes_on_under_the_next_charter(
    rig: Rig, model: str
) -> None:
    def lost(to: str, reply: bytes) -> bytes:
        raise PeerError("fund: does not answer")

    consent, rig.line.change = rig.consent(model=model), lost
    with pytest.raises(PeerError, match="does not answer"):
        rig.ask(consent)
    rig.line.change = None
    for name in SIDES:
        rig.start(name, charter="d" * 64)
    told = rig.ask(consent)
    assert not told["before"] and rig.ask(consent)["before"]
    lines = entries(read_lines(rig.folder / "fund" / LOG))
    steps = [line.told["step"] for line in lines if line.kind == "request"]
    assert steps == (["band"] if model == GLM else ["leaves", "band"])


def test_what_a_side_answers_does_not_bound_what_it_asks(rig: Rig) -> None:
    rig.start("insurer", answers=OwnScores(a_month=1))  # tells of glms alone
    assert rig.ask(rig.consent(model=TREES))["score"]
    rig.start("fund", answers=OwnScores(a_month=9))
    with pytest.raises(
        PolicyError, match=r"scores are told of glm, and this model is of kind trees"
    ):
        rig.ask(rig.consent("ann", TREES))
    assert rig.ask(rig.consent("bob"))["score"]


def test_each_score_is_approved_once(rig: Rig) -> None:
    rig.start("fund", approval=True)
    consent = rig.consent(model=TREES)
    with pytest.raises(PolicyError, match="waits for a person"):
        rig.ask(consent)
    folder = rig.folder / "fund" / "scores" / "approved"
    folder.mkdir(exist_ok=True)
    (folder / consent.digest).write_text(json.dumps({"by": "Li"}))
    assert rig.ask(consent)["score"]
    lines = list(entries(read_lines(rig.folder / "fund" / LOG)))
    assert [line.told["by"] for line in lines if line.kind == "approval"] == ["Li"]


@pytest.mark.parametrize(
    "values",
    [
        {"period_days": 10**6},
        {"token_days": 10**7},
        {"signers": {"desk": "zz"}},
        {"purposes": {"invite": "fund"}, "refused_purposes": ["invite"]},
        {"kinds": []},
    ],
)
def test_terms_by_which_no_question_could_be_answered_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(values))[:7]}"):
        ScoreTerms.model_validate(TERMS.model_dump() | values)
