"""The nightly comparison among processes: restarts in the middle, and letters that are wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from federated.link.letters import Letter, packed
from federated.link.party_log import party_log
from federated.link.ring import COORDINATOR
from federated.link.services.desk_folder import DeskTerms, read_desk
from federated.link.services.desk_service import DeskReply
from federated.link.services.night import (
    ANNOUNCE,
    RING,
    NightRole,
    agreed_terms,
    coordinator_night,
    payer_night,
)
from federated.link.services.process import LinkMember, ask
from lab.audit.log_format import entries, read_lines
from lab.errors import ConfigurationError, PeerError
from secure_agg.errors import FaultyParty
from secure_agg.identity import Identity
from tests.federated.link.test_desk import IDENTITIES, running
from tests.federated.link.test_duplicates import BILL, CLAIM, PAYERS, charter, table
from tests.rigs.relayed import Post, post

TABLES = {
    "fund": table((1, "F9", "P1", 3, 80)),
    "north": table(BILL),
    "south": table((1, "S2", "P1", 3, 80), (7, "S1", "P1", 20, 500)),
}


def agreed(**changes: Any) -> DeskTerms:
    cards = {name: identity.card for name, identity in IDENTITIES.items()}
    return agreed_terms(charter(**changes), PAYERS, cards)


@pytest.fixture
def opened() -> Iterator[Post]:
    with post() as found:
        yield found
        found.shut()


@contextmanager
def role(
    folder: Path, name: str, opened: Post, patience: float = 30.0, terms: DeskTerms | None = None
) -> Iterator[NightRole]:
    identity = IDENTITIES[name]
    with party_log(identity, folder / name) as log:
        member = LinkMember(identity, {}, opened.line(name), log)
        one = NightRole(folder / name, member, terms or agreed(), patience)
        with one.at_work():
            yield one


def take_part(folder: Path, name: str, opened: Post, patience: float = 30.0) -> Any:
    with role(folder, name, opened, patience) as one:
        table = TABLES.get(name)
        result: Any = coordinator_night(one) if table is None else payer_night(one, table)
        one.finish()
        return result


def all_roles(folder: Path, opened: Post) -> dict[str, Any]:
    outcomes: dict[str, Any] = {}

    def run(name: str) -> None:
        try:
            outcomes[name] = take_part(folder, name, opened)
        except Exception as error:
            outcomes[name] = error

    threads = [threading.Thread(target=run, args=(name,)) for name in IDENTITIES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def check(outcomes: dict[str, Any]) -> None:
    assert not [each for each in outcomes.values() if isinstance(each, Exception)], outcomes
    rows = {name: outcomes[name].matches.to_numpy().tolist() for name in PAYERS}
    assert rows["fund"] == [[0, "visit", "south"]]
    assert rows["north"] == [[0, "visit", "south"]]
    assert rows["south"] == [[0, "visit", "fund"], [1, "visit", "north"]]
    assert outcomes[COORDINATOR]["names"].tolist() == [1, 1]


def refusals(folder: Path, name: str) -> list[str]:
    lines = entries(read_lines(folder / name / "log.jsonl"))
    return [line.told["text"] for line in lines if line.kind == "refusal"]


def test_a_night_finds_what_one_process_finds_and_opens_the_desk(
    tmp_path: Path, opened: Post
) -> None:
    check(all_roles(tmp_path, opened))
    folders = {name: read_desk(tmp_path / name) for name in IDENTITIES}
    with running(folders) as one:
        assert one.ask("fund", CLAIM) == DeskReply("invoice", ("north", "south"))


def test_a_role_that_stopped_in_the_middle_goes_on_where_it_was(
    tmp_path: Path, opened: Post
) -> None:
    """South stops twice: before it sent anything, and when it had sent all but got no answer."""
    with pytest.raises(PeerError, match="coordinator: announced no night"):
        take_part(tmp_path, "south", opened, patience=0.5)
    others = {name for name in IDENTITIES if name != "south"}
    threads = [threading.Thread(target=take_part, args=(tmp_path, name, opened)) for name in others]
    for thread in threads:
        thread.start()
    with role(tmp_path, "south", opened) as south:
        session, texts = south.shared.session, (south.post / "night.json").read_text()
        south.take(RING, 32 - 16, "north")
    with role(tmp_path, "south", opened) as south:
        assert (south.shared.session, texts) == (session, (south.post / "night.json").read_text())
        first = payer_night(south, TABLES["south"])
    with role(tmp_path, "south", opened) as south:
        again = payer_night(south, TABLES["south"])
        south.finish()
    for thread in threads:
        thread.join()
    assert first.matches.equals(again.matches) and len(again.matches) == 2
    assert not (tmp_path / "south" / "post").exists()


def test_a_night_of_other_terms_or_of_nobody_is_refused_and_noted(
    tmp_path: Path, opened: Post
) -> None:
    failed: list[Exception] = []

    def announce() -> None:
        try:
            with role(tmp_path, COORDINATOR, opened, terms=agreed(cap=9)):
                pass
        except PeerError as error:
            failed.append(error)

    coordinator = threading.Thread(target=announce)
    coordinator.start()
    with pytest.raises(PeerError, match="announced no night"):
        take_part(tmp_path, "fund", opened, patience=2)
    coordinator.join()
    assert "announced a night for other terms than were agreed on here" in str(failed[0])
    assert "announced a night for other terms" in refusals(tmp_path, "fund")[0]
    waiting = threading.Thread(target=_one_night, args=(tmp_path, opened))
    waiting.start()
    opened.until_there("north", ANNOUNCE)
    for content in (b"{", b"[]", json.dumps({"session": "0" * 64, "signature": "00"}).encode()):
        with pytest.raises(PeerError, match="coordinator: announced a night for other terms"):
            ask(opened.line("fund"), "north", ANNOUNCE, content)
    waiting.join()


def _one_night(folder: Path, opened: Post) -> None:
    with pytest.raises(PeerError, match="announced no night"):
        take_part(folder, "north", opened, patience=2)


def test_a_night_that_was_before_is_refused(tmp_path: Path, opened: Post) -> None:
    identity = IDENTITIES[COORDINATOR]
    with party_log(identity, tmp_path / COORDINATOR) as log:
        member = LinkMember(identity, {}, opened.line(COORDINATOR), log)
        one = NightRole(tmp_path / COORDINATOR, member, agreed(), 0)
        one._announce()
    announced = (one.post / "night.json").read_bytes()
    check(all_roles(tmp_path, opened))
    (tmp_path / "north" / "post").mkdir()
    (tmp_path / "north" / "post" / "night.json").write_bytes(announced)
    with pytest.raises(FaultyParty, match="coordinator: announces a night that was before"):
        take_part(tmp_path, "north", opened)


@pytest.mark.parametrize(
    ("sender", "name", "kind", "to", "words"),
    [
        ("south", "fund", RING, "north", "fund: a letter in its name was altered, or lacks"),
        ("fund", "fund", "answer", "north", "fund: sent a letter of another session, kind"),
        ("fund", "fund", RING, "south", "altered, or sealed for somebody else|another session"),
    ],
)
def test_a_letter_that_is_not_the_senders_is_refused_noted_and_never_kept(
    tmp_path: Path, opened: Post, sender: str, name: str, kind: str, to: str, words: str
) -> None:
    coordinator = threading.Thread(target=_announcing, args=(tmp_path, opened))
    coordinator.start()
    with role(tmp_path, "north", opened) as north:
        letter = Letter(north.terms.digest, 0, name, to, kind, packed({"0": b"forged"}))
        data = letter.sealed(IDENTITIES[sender], IDENTITIES["north"].card)
        opened.until_there("north", RING)
        with pytest.raises(PeerError, match=words):
            ask(opened.line("fund"), "north", RING, data)
        assert not list(north.post.glob("*.letter"))
    coordinator.join()
    assert len(refusals(tmp_path, "north")) == 1


def _announcing(folder: Path, opened: Post) -> None:
    with pytest.raises(PeerError), role(folder, COORDINATOR, opened, patience=1):
        pass


def test_a_letter_in_the_place_of_another_of_its_sender_is_refused(
    tmp_path: Path, opened: Post
) -> None:
    coordinator = threading.Thread(target=_announcing, args=(tmp_path, opened))
    coordinator.start()
    with role(tmp_path, "north", opened) as north:
        letter = Letter(north.terms.digest, 33, "fund", "north", RING, packed({"0": b""}))
        data = letter.sealed(IDENTITIES["fund"], IDENTITIES["north"].card)
        (north.post / "ring-0.letter").write_bytes(data)
        with pytest.raises(FaultyParty, match="fund: replays letter 33 as 0"):
            north.take(RING, 0, "fund")
    coordinator.join()


def test_an_identity_of_another_is_refused(tmp_path: Path, opened: Post) -> None:
    stranger = Identity.generate("south")
    with party_log(stranger, tmp_path) as log:
        member = LinkMember(stranger, {}, opened.line("south"), log)
        with pytest.raises(ConfigurationError, match="takes no part"):
            NightRole(tmp_path, member, agreed(), 0)
