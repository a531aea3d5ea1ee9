"""What hides contributions, who refuses what, and who is blamed."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.serverapp import Grid

from federated.app import client_app, server_app
from federated.federation import Federation
from federated.hiding import paillier as encrypted
from federated.hiding.masks import Masks
from federated.hiding.paillier import Dealer, KeyAuthority, Paillier
from federated.hiding.protocol import Clear, Protection
from federated.messages import Hiding, Reply, Request, blobs, message_of, read
from federated.party.party import Party, Policy
from federated.party.party_sets import PartySets
from federated.party.statistics import find
from federated.transport import in_process as grid
from lab.errors import ConfigurationError, LogError, ModelError, PeerError, PolicyError
from lab.models.design import Encoding, Feature, Levels
from lab.models.families import Scale
from lab.models.glm import GLM, Task
from lab.sums import Limit, Sums
from secure_agg.errors import (
    FaultyCoordinator,
    FaultyHolder,
    FaultyParty,
    InconsistentSum,
    InvalidKey,
    TooFewParties,
)
from secure_agg.identity import Roster
from secure_agg.shares import Part
from secure_agg.transcript import Contribution, Transcript
from tests.conftest import federate, fit_glm, split
from tests.federated.solvers.test_glm import table
from tests.rigs.malformed import CHANGES, LeavesTheLayout

TASK = Task(target="y", exposure="years")
MOST = (2.0**14,) * 4  # a bound of each of its totals
HIDDEN = ["paillier", "split", "masks"]


def means(federation: Federation) -> Sums:
    return federation.sum("totals", task=TASK, part="train", most=MOST)


def way(name: str, key: Any) -> Protection:
    match name:
        case "paillier":
            return Paillier(KeyAuthority(key))
        case "split":
            return Paillier(Dealer(key))
        case _:
            return Masks()


class Road:
    """A grid on whose messages somebody sits: what goes out and what comes in passes through."""

    def __init__(
        self,
        behind: Grid,
        out: Callable[[Message], Message | None] = lambda message: message,
        back: Callable[[Message], Message | None] = lambda message: message,
    ) -> None:
        self.behind, self.out, self.back = behind, out, back
        self.get_node_ids = behind.get_node_ids

    def send_and_receive(self, messages: Iterable[Message]) -> Iterable[Message]:
        passed = [m for m in map(self.out, messages) if m is not None]
        answers = self.behind.send_and_receive(passed)
        return [m for m in map(self.back, answers) if m is not None]


def on_a_road(
    protection: Protection,
    work: Callable[[Federation], Any] = means,
    parties: int = 4,
    hiding: Hiding | None = None,
    person: str | None = None,
    sets: Callable[[], PartySets] = PartySets,
    **sitting: Callable[[Message], Message | None],
) -> Any:
    """Like ``federate``, with somebody on the road."""
    frames = split(table("poisson"), parties)
    holders = [
        Party(f"insurer {k + 1}", f, f.iloc[:0], person, party_sets=sets())
        for k, f in enumerate(frames)
    ]
    node = client_app(holders.__getitem__, hiding or protection.hiding)
    found: list[Any] = []
    app = server_app(
        lambda nodes: found.append(work(Federation(Road(nodes, **sitting), protection, parties)))
    )
    grid.run_in_process(app, node, parties, 1)
    return found[0]


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_sums_are_the_clear_ones(name: str, authority_key: Any) -> None:
    parts = split(table("poisson"), 4)
    clear, hidden = federate(parts, means), federate(parts, means, way(name, authority_key))
    assert clear.rows == hidden.rows
    for array in clear.arrays:
        np.testing.assert_allclose(hidden[array], clear[array], rtol=1e-12)


@pytest.mark.parametrize("name", HIDDEN)
def test_a_model_from_hidden_sums_is_the_clear_one(name: str, authority_key: Any) -> None:
    parts = split(table("gamma"), 3)
    task = Task(target="y", family="gamma")
    clear = fit_glm(parts, task, ["age", "region"])
    hidden = fit_glm(parts, task, ["age", "region"], protection=way(name, authority_key))
    np.testing.assert_allclose(hidden.model.beta, clear.model.beta, rtol=1e-9)


@pytest.mark.parametrize("name", HIDDEN)
def test_two_parties_cannot_hide_from_each_other(name: str, authority_key: Any) -> None:
    with pytest.raises(PolicyError, match="at least 3 parties"):
        federate(split(table("poisson"), 2), means, way(name, authority_key))


@pytest.mark.parametrize("name", HIDDEN)
def test_the_receipt_counts_what_passed_the_gate(name: str, authority_key: Any) -> None:
    parts = split(table("poisson"), 3)

    def work(federation: Federation) -> Any:
        means(federation)
        means(federation)
        return federation.receipts()

    receipts = federate(parts, work, way(name, authority_key))
    hiding = "masks" if name == "masks" else "paillier"
    for frame, lines in zip(parts, receipts.values(), strict=True):
        sums = [line for line in lines if line.statistic == "totals"]
        assert [line.rows for line in sums] == [len(frame)] * 2
        assert {line.hiding for line in lines} == {hiding}
        others = {line.statistic for line in lines} - {"totals"}
        assert (
            others
            == {
                "paillier": set(),
                "split": {"part of a decryption"},
                "masks": {"keys and shares of masks"},
            }[name]
        )


def test_nobody_can_tell_whose_sums_are_over_their_bound(paillier: Paillier) -> None:
    parts = split(table("poisson"), 3)
    parts[1] = parts[1].assign(years=1e300)
    for protection in (paillier, Masks()):
        with pytest.raises(ModelError, match="nobody can tell whose") as caught:
            federate(parts, means, protection)
        assert "1e+300" not in str(caught.value) and "insurer" not in str(caught.value)


def test_a_sum_over_fewer_rows_than_the_minimum_is_refused_by_rule() -> None:
    frame = table("poisson")
    parties = [
        Party("big", frame[:900], frame[:0], None, Policy(minimum_rows=100)),
        Party("small", frame[900:940], frame[:0], None, Policy(minimum_rows=100)),
    ]
    app = server_app(lambda nodes: means(Federation(nodes, Clear(), 2)))
    with pytest.raises(PolicyError, match=r"small: totals: fewer rows behind the sum than .* 100"):
        grid.run_in_process(app, client_app(parties.__getitem__, "clear"), 2, 2)


def test_no_message_carries_the_key_or_a_share(authority_key: Any) -> None:
    sent: list[bytes] = []

    def watch(message: Message) -> Message:
        for record in message.content.array_records.values():
            sent.extend(array.data for array in record.values())
        return message

    on_a_road(Paillier(Dealer(authority_key)), out=watch, back=watch)
    everything = b"".join(sent)
    assert int(authority_key.public.n).to_bytes(256, "big") in everything
    order = (authority_key.p - 1) * (authority_key.q - 1) // 2
    for secret in (authority_key.p, authority_key.q, order, pow(authority_key.public.n, -1, order)):
        assert int(secret).to_bytes(256, "big").lstrip(b"\0") not in everything


# A coordinator that does not keep to the protocol.


def retold(change: Callable[[Transcript], Transcript]) -> Callable[[Message], Message]:
    """Somebody who changes the transcript on its way to the holders."""

    def out(message: Message) -> Message:
        if message.metadata.message_type == "query.part":
            shown = Transcript.from_bytes(read(message.content, "transcript"))
            told = message_of(transcript=change(shown).to_bytes())
            return Message(told, message.metadata.dst_node_id, "query.part")
        return message

    return out


def less(shown: Transcript) -> Transcript:
    return Transcript(shown.terms, shown.contributions[:-1])


def twice(shown: Transcript) -> Transcript:
    return Transcript(shown.terms, (*shown.contributions[:-1], shown.contributions[0]))


def swapped(shown: Transcript) -> Transcript:
    a, b, *rest = shown.contributions
    mixed = (
        Contribution(a.party, b.batch, a.signature),
        Contribution(b.party, a.batch, b.signature),
        *rest,
    )
    return Transcript(shown.terms, mixed)


@pytest.mark.parametrize(
    ("change", "words"),
    [(less, "leaves out insurer 4"), (twice, "insurer 1's contribution twice"), (swapped, "cover")],
)
def test_holders_refuse_a_changed_transcript(change: Any, words: str, authority_key: Any) -> None:
    with pytest.raises(PeerError, match=rf"insurer 1: coordinator: query .*{words}"):
        on_a_road(Paillier(Dealer(authority_key)), out=retold(change))


def test_holders_refuse_a_transcript_shown_before(authority_key: Any) -> None:
    first: list[Transcript] = []

    def old(shown: Transcript) -> Transcript:
        first.append(shown)
        return first[0]

    def twice_asked(federation: Federation) -> None:
        means(federation)
        means(federation)

    with pytest.raises(PeerError, match="answered before and is replayed"):
        on_a_road(Paillier(Dealer(authority_key)), twice_asked, out=retold(old))


@pytest.mark.parametrize("name", HIDDEN)
def test_parties_that_were_asked_different_questions_are_not_added(
    name: str, authority_key: Any
) -> None:
    def out(message: Message) -> Message:
        if "request" in message.content.config_records and message.metadata.dst_node_id == 1:
            header = message.content.config_records["request"]
            header["arguments"] = str(header["arguments"]).replace("train", "test")
        return message

    with pytest.raises((FaultyParty, PeerError), match=r"insurer 1: .*(cover|another question)"):
        on_a_road(way(name, authority_key), out=out)


def test_a_node_encrypts_to_the_key_it_was_enrolled_with_and_to_no_other(paillier: Any) -> None:
    def again(federation: Federation) -> None:
        other = Paillier(KeyAuthority.with_new_key(2048))
        other.enrol(federation, Roster(tuple(m.card for m in federation.members)))

    with pytest.raises(PolicyError, match="enrolled under another roster or key"):
        on_a_road(paillier, again)


def test_a_node_hides_nothing_without_a_roster() -> None:
    request = Request(
        "q",
        "totals",
        {"task": TASK.model_dump(mode="json"), "part": "train", "most": list(MOST)},
        {},
        "paillier",
        ("a", "b", "c"),
    )

    def unenrolled(federation: Federation) -> Any:
        return federation.ask("query", {"insurer 1": request.to_record()})

    with pytest.raises(PolicyError, match="insurer 1: this node is not enrolled"):
        on_a_road(Clear(), unenrolled, hiding="paillier")


@pytest.mark.parametrize("name", HIDDEN)
def test_a_node_that_hides_answers_nothing_in_the_clear(name: str, authority_key: Any) -> None:
    protection = way(name, authority_key)

    def asked_in_the_clear(federation: Federation) -> Any:
        request = Request(
            "q",
            "totals",
            {"task": TASK.model_dump(mode="json"), "part": "train", "most": list(MOST)},
            {},
            "clear",
        )
        return federation.ask("query", {"insurer 1": request.to_record()})

    with pytest.raises(PolicyError, match=r"insurer 1: this party answers .* alone, not 'clear'"):
        on_a_road(protection, asked_in_the_clear)


@pytest.mark.parametrize("name", HIDDEN)
def test_no_message_tells_how_many_rows_a_party_has(name: str, authority_key: Any) -> None:
    told: list[int] = []

    def back(message: Message) -> Message:
        if "reply" in message.content.config_records:
            told.append(Reply.from_record(message.content).rows)
        return message

    total = on_a_road(way(name, authority_key), back=back)
    assert told == [0] * 4
    assert total.rows == len(table("poisson"))
    with pytest.raises(PolicyError, match="keeps its receipt to itself"):
        on_a_road(way(name, authority_key), Federation.receipts)


def test_a_node_adds_to_no_sum_of_some_of_the_parties(paillier: Paillier) -> None:
    def all_but_one(federation: Federation) -> Any:
        arguments = {"task": TASK.model_dump(mode="json"), "part": "train", "most": list(MOST)}
        fewer = Request("q", "totals", arguments, {}, "paillier", federation.names[:-1])
        return paillier.total(federation, fewer)

    with pytest.raises(PolicyError, match="all parties of the roster, or none"):
        on_a_road(paillier, all_but_one)


def test_a_node_refuses_a_second_share_of_a_key_a_stranger_dealt(authority_key: Any) -> None:
    def deal_again(federation: Federation) -> None:
        other = Paillier(Dealer(authority_key))
        other.enrol(federation, Roster(tuple(m.card for m in federation.members)))

    with pytest.raises(PolicyError, match="enrolled under another roster or key"):
        on_a_road(Paillier(Dealer(authority_key)), deal_again)


def test_the_key_authority_serves_one_roster(authority_key: Any) -> None:
    authority = KeyAuthority(authority_key)
    on_a_road(Paillier(authority))
    with pytest.raises(PolicyError, match="serves one roster"):
        on_a_road(Paillier(authority))


def test_names_of_levels_leave_only_where_they_are_needed() -> None:
    def everything(federation: Federation) -> Any:
        return federation.levels(Task(target="y"), (Feature(column="income"),))

    with pytest.raises(PolicyError, match="names of levels of 'income' do not leave"):
        on_a_road(Clear(), everything)


def test_no_question_is_about_persons() -> None:
    terms = [{"feature": {"column": "age"}, "levels": ["1", "2"]}]

    def by_person(federation: Federation) -> Any:
        return federation.sum("level_counts", task=TASK, features=terms)

    with pytest.raises(PeerError, match="insurer 1: failed with KeyError"):
        on_a_road(Clear(), by_person, person="age")


def test_a_node_that_refuses_too_often_falls_silent(paillier: Paillier) -> None:
    def probe(federation: Federation) -> None:
        for column in ("one", "two", "three"):
            terms = [{"feature": {"column": column}, "mean": 0.0, "scale": 1.0}]
            with pytest.raises(PeerError, match="failed with KeyError"):
                federation.sum("moments", task=TASK, features=terms, most=1.0)
        means(federation)

    with pytest.raises(PolicyError, match="insurer 1: this party has refused 3 times"):
        on_a_road(paillier, probe)


@pytest.mark.parametrize("known", [True, False], ids=["unprotected twin", "as shipped"])
def test_resamples_are_no_equations_for_single_rows(known: bool) -> None:
    rows = table("poisson").iloc[:60]
    party = Party("a", rows, rows)
    model = GLM(task=TASK, encoding=Encoding(), beta=(0.0,))
    scale = Scale(rows=60, weight=1, exposure=1, target=1, square=2)
    arguments = {"model": model.model_dump_json(), "task": TASK, "scale": scale}
    row = find("score_fit")
    sums = row.function(party, row.arguments(**arguments, replicates=90, seed=7), {})
    guess = party.secret if known else bytes(32)
    rng = np.random.default_rng([7, *hmac.digest(guess, b"resamples", "sha256")])
    weights = np.array([rng.poisson(1.0, 60) for _ in range(90)], dtype=float)
    found = np.linalg.lstsq(weights, sums["actual"][1:], rcond=None)[0]
    right = np.abs(found - rows["y"]) < 1e-6
    assert right.all() if known else right.mean() < 0.2


def test_the_key_authority_opens_nothing_but_what_its_checks_allow(authority_key: Any) -> None:
    seen: list[Any] = []

    class Watched(KeyAuthority):
        def open(self, talk: Any, transcript: Transcript, *shown: Any) -> Any:
            seen.append((transcript, *shown))
            return super().open(talk, transcript, *shown)

    authority = Watched(authority_key)
    on_a_road(Paillier(authority))
    transcript, *shown = seen[0]
    for change in (less, twice, swapped, lambda shown: shown):
        with pytest.raises(FaultyCoordinator):
            KeyAuthority.open(authority, None, change(transcript), *shown)  # type: ignore[arg-type]


# A party that does not keep to the protocol.


@pytest.mark.parametrize("change", CHANGES)
def test_a_party_that_leaves_the_layout_is_named_by_the_key_authority(
    change: str, authority_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    culprit = LeavesTheLayout("insurer 3", authority_key.public, change)
    monkeypatch.setattr(encrypted, "contribute", culprit)
    with pytest.raises(FaultyParty, match=r"^insurer 3: .* no total was opened") as caught:
        on_a_road(Paillier(KeyAuthority(authority_key)))
    assert caught.value.culprits == ("insurer 3",)


def test_with_a_split_key_nobody_can_say_who_left_the_layout(
    authority_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    culprit = LeavesTheLayout("insurer 3", authority_key.public)
    monkeypatch.setattr(encrypted, "contribute", culprit)
    with pytest.raises(InconsistentSum, match=r"a party encrypted .* nobody can .* say whose"):
        on_a_road(Paillier(Dealer(authority_key)))


def test_a_holder_that_gives_a_false_part_is_named(authority_key: Any) -> None:
    protection = Paillier(Dealer(authority_key))

    def back(message: Message) -> Message:
        if message.metadata.message_type == "query.part" and message.metadata.src_node_id == 3:
            key = protection.opener._holders._split  # type: ignore[attr-defined]
            part = Part.from_bytes(read(message.content, "part"), key)
            numbers = (part.numbers[0] * 2 % key.public.n, *part.numbers[1:])
            false = Part(numbers, part.challenge, part.response).to_bytes(key)
            message.content["message"] = blobs(part=false)
        return message

    with pytest.raises(FaultyHolder, match="insurer 3") as caught:
        on_a_road(protection, back=back)
    assert caught.value.culprits == ("insurer 3",)


def test_a_dealer_deals_once(authority_key: Any) -> None:
    holders = Dealer(authority_key)
    on_a_road(Paillier(holders))
    with pytest.raises(PolicyError, match="forgotten"):
        on_a_road(Paillier(holders))


@pytest.mark.parametrize("name", HIDDEN)
def test_an_answer_in_the_clear_is_refused_where_hidden_was_asked(
    name: str, authority_key: Any
) -> None:
    def back(message: Message) -> Message:
        if "reply" in message.content.config_records and message.metadata.src_node_id == 2:
            reply = Reply.from_record(message.content)
            arrays = {name: np.zeros(shape) for name, (shape, _) in reply.form.items()}
            clear = Reply(reply.party, reply.rows, reply.form, clear=arrays).to_record()
            message.content["body"] = clear["body"]
        return message

    with pytest.raises(PeerError, match="insurer 2: answered in the clear"):
        on_a_road(way(name, authority_key), back=back)


def test_a_hidden_answer_is_refused_where_clear_was_asked() -> None:
    def back(message: Message) -> Message:
        if "reply" in message.content.config_records:
            message.content["body"] = blobs(hidden=b"x")
        return message

    with pytest.raises(PeerError, match="insurer 1: hid its answer"):
        on_a_road(Clear(), back=back)


@pytest.mark.parametrize("name", HIDDEN)
def test_sums_of_another_form_are_not_added(name: str, authority_key: Any) -> None:
    def back(message: Message) -> Message:
        if "reply" in message.content.config_records and message.metadata.src_node_id == 2:
            reply = Reply.from_record(message.content)
            other = {k: (shape, Limit(1.0, 1.0)) for k, (shape, _) in reply.form.items()}
            changed = Reply(reply.party, reply.rows, other, hidden=reply.hidden).to_record()
            message.content["reply"] = changed["reply"]
        return message

    with pytest.raises(PeerError, match="insurer 2: sums of another form"):
        on_a_road(way(name, authority_key), back=back)


# Parties that fall silent under masks.

STEPS = ("advertise", "share", "mask", "confirm", "reveal")


@pytest.mark.parametrize("step", STEPS)
def test_under_masks_a_minority_may_fall_silent_at_any_step(step: str) -> None:
    def out(message: Message) -> Message | None:
        gone = message.metadata.message_type.endswith(f"masks_{step}")
        return None if gone and message.metadata.dst_node_id in (2, 5) else message

    def work(federation: Federation) -> Any:
        return means(federation), federation.silent

    total, silent = on_a_road(Masks(), work, parties=5, out=out)
    parts = split(table("poisson"), 5)
    late = step in ("confirm", "reveal")
    rest = parts if late else [p for k, p in enumerate(parts) if k not in (1, 4)]
    clear = federate(rest, means)
    assert total.rows == clear.rows
    for array in clear.arrays:
        np.testing.assert_allclose(total[array], clear[array], rtol=1e-12)
    assert {name for name, _ in silent} == {"insurer 2", "insurer 5"}


def test_under_masks_a_majority_must_stay() -> None:
    def out(message: Message) -> Message | None:
        gone = message.metadata.message_type.endswith("masks_reveal")
        return None if gone and message.metadata.dst_node_id in (2, 3, 5) else message

    with pytest.raises(TooFewParties, match="2 stayed to the end"):
        on_a_road(Masks(), parties=5, out=out)


def test_encrypted_sums_need_every_party(paillier: Paillier) -> None:
    def out(message: Message) -> Message | None:
        gone = message.metadata.message_type == "query" and message.metadata.dst_node_id == 2
        return None if gone else message

    with pytest.raises(PeerError, match="insurer 2: did not answer"):
        on_a_road(paillier, out=out)


def test_a_fit_does_not_go_on_when_a_party_leaves() -> None:
    asked = []

    def out(message: Message) -> Message | None:
        if message.metadata.message_type.endswith("masks_mask"):
            asked.append(message)
        gone = len(asked) > 25 and message.metadata.dst_node_id == 2
        return None if gone else message

    def fit(federation: Federation) -> Any:
        from federated.solvers import glm
        from federated.solvers.encoding import agree
        from lab.tables.contracts import draft

        task, contract = Task(target="y", exposure="years"), draft(table("poisson"), "t")
        encoding = agree(federation, task, (Feature(column="age"),), contract, 1)
        return glm.fit(federation, task, encoding)

    with pytest.raises(PeerError, match="a party left or came back"):
        on_a_road(Masks(), fit, parties=5, out=out)


def test_a_node_answers_under_masks_only_what_it_was_told_it_would_be_asked() -> None:
    def out(message: Message) -> Message:
        if message.metadata.message_type.endswith("masks_mask"):
            message.content.config_records["request"]["query"] = "another"
        return message

    with pytest.raises(PeerError, match="asks another question"):
        on_a_road(Masks(), out=out)


def test_a_node_takes_part_in_a_masked_query_once() -> None:
    def work(federation: Federation) -> None:
        means(federation)
        federation._sums -= 1
        means(federation)

    with pytest.raises(PeerError, match="answered before and is replayed"):
        on_a_road(Masks(), work)


def test_a_node_without_a_share_opens_nothing(paillier: Paillier) -> None:
    def work(federation: Federation) -> None:
        federation.ask("query.part", {"insurer 1": message_of(transcript=b"")})

    with pytest.raises(PolicyError, match="holds no share"):
        on_a_road(paillier, work)


def test_a_share_for_another_key_is_refused(authority_key: Any) -> None:
    class Careless(Dealer):
        def enrol(self, roster: Any) -> Any:
            told = super().enrol(roster)
            first, second = list(told)[:2]
            told[first]["share"] = told[second]["share"]
            return told

    with pytest.raises((InvalidKey, PeerError), match=r"insurer 1: .*sealed"):
        on_a_road(Paillier(Careless(authority_key)))


class Forgetful(PartySets):
    """The unprotected twin: it knows of no set before."""

    def allow(self, question: bytes, present: Iterable[str], least: int) -> None:
        return


@pytest.mark.parametrize("sets", [PartySets, Forgetful])
def test_a_masked_total_asked_again_without_a_party_shows_its_sums_unless_nodes_remember(
    sets: type[PartySets],
) -> None:
    """The coordinator asks everybody, then once more as if insurer 5 had fallen silent."""
    gone: list[int] = []

    def out(message: Message) -> Message | None:
        return None if message.metadata.dst_node_id in gone else message

    def work(federation: Federation) -> Sums:
        before = means(federation)
        gone.append(federation.members[4].node)
        after = means(federation)
        arrays = {name: before[name] - after[name] for name in before.arrays}
        return Sums(arrays, before.limits, before.rows - after.rows)

    if sets is PartySets:
        with pytest.raises(PolicyError, match="would show insurer 5's own sum"):
            on_a_road(Masks(), work, parties=5, sets=sets, out=out)
        return
    stolen = on_a_road(Masks(), work, parties=5, sets=sets, out=out)
    own = split(table("poisson"), 5)[4]
    assert stolen.rows == len(own)
    assert stolen.total("target") == pytest.approx(own["y"].sum())


def test_the_sets_of_a_masked_question_outlast_the_process(tmp_path: Any) -> None:
    path = tmp_path / "sets.jsonl"
    PartySets(path).allow(b"q", ["a", "b", "c", "d"], 3)
    again = PartySets(path)
    again.allow(b"q", ["d", "c", "b", "a"], 3)
    with pytest.raises(PolicyError, match="would show d's own sum"):
        again.allow(b"q", ["a", "b", "c"], 3)
    for names in (["a", "b", "c"], ["a", "b", "c", "d", "e"]):
        with pytest.raises(PolicyError, match=r"the same parties as before \(a, b, c, d\)"):
            PartySets(path, by_question=False).allow(b"another", names, 3)
    again.allow(b"another", ["a", "b", "c"], 3)
    whole = path.read_bytes()
    path.write_bytes(whole + b'["another", ["a", "b')  # a power loss: nothing left after it
    PartySets(path)
    assert path.read_bytes() == whole
    path.write_bytes(b"[1]\n" + whole)
    with pytest.raises(ConfigurationError, match=r"sets\.jsonl: is damaged"):
        PartySets(path)
    path.unlink()
    with pytest.raises(LogError, match="cannot be written"):
        again.allow(b"a third", ["a", "b", "c"], 3)
    with pytest.raises(PolicyError, match="at least 4 parties here, not 3"):
        again.allow(b"another", ["a", "b", "c"], 4)


@pytest.mark.parametrize("way", ["masks", "masks at the node", "split"])
def test_cells_of_few_persons_are_not_summed_where_everybody_sees_totals(
    way: str, authority_key: Any
) -> None:
    class Unguarded(Masks):
        def total(self, talk: Any, request: Request) -> Sums:
            return self.run(talk, request)

    protection: Protection = {
        "masks": Masks,
        "masks at the node": Unguarded,
        "split": lambda: Paillier(Dealer(authority_key)),
    }[way]()
    regions = (Levels(feature=Feature(column="region"), levels=("north", "south")),)

    def counted(federation: Federation) -> Sums:
        assert federation.everybody
        return federation.sum("level_counts", task=TASK, features=regions)

    with pytest.raises(PolicyError, match="cells that may stand on few persons") as refusal:
        on_a_road(protection, counted)
    assert refusal.value.rule == "cells"
    parties = on_a_road(
        protection if way != "split" else Paillier(Dealer(authority_key)),
        lambda federation: federation.sum("level_parties", task=TASK, features=regions, least=10)[
            "parties"
        ],
    )
    assert parties.tolist() == [4.0, 4.0]  # each of the four has ten persons at both levels
