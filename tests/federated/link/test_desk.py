"""One claim at the desk: services of real sockets, who learns what, what is refused and who is named."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federated.link import desk
from federated.link.charter import LinkCharter
from federated.link.letters import Letter, packed, unpacked
from federated.link.party_log import party_log
from federated.link.ring import COORDINATOR
from federated.link.services.desk_folder import DeskFolder, read_desk, write_desk
from federated.link.services.desk_service import (
    ASK,
    TICKET,
    DeskReply,
    DeskService,
    asked,
    ticket,
)
from federated.link.services.desk_service import CLAIM as CLAIMS
from federated.link.services.night import agreed_terms, desk_of
from federated.link.services.process import (
    OWN_SESSION,
    LinkMember,
    ask,
    ask_own,
    own_box,
    serve,
)
from lab.audit.log_format import entries, read_lines
from lab.errors import ConfigurationError, PeerError, PolicyError
from secure_agg.errors import FaultyParty, MalformedMessage
from secure_agg.identity import Identity
from tests.federated.link.test_duplicates import BILL, CLAIM, PAYERS, charter, table
from tests.rigs.relayed import Post, post

IDENTITIES = {name: Identity(name, name.encode().ljust(32)) for name in (*PAYERS, COORDINATOR)}


def night(folder: Path, **changes: Any) -> dict[str, DeskFolder]:
    tables = {
        "fund": table((1, "F9", "P1", 3, 80)),
        "north": table(BILL),
        "south": table((1, "S2", "P1", 3, 80), (7, "S1", "P1", 20, 500)),
    }
    cards = {name: identity.card for name, identity in IDENTITIES.items()}
    terms: LinkCharter = charter(**changes)
    homes = {name: folder / name for name in IDENTITIES}
    desk_of(tables, agreed_terms(terms, PAYERS, cards), homes)
    return {name: read_desk(home) for name, home in homes.items()}


class Desk:
    """The desk's services, each as its process is; what is asked and told goes through the relay."""

    def __init__(self, opened: Post, services: dict[str, DeskService]) -> None:
        self.post, self.services = opened, services

    def ask(self, name: str, claim: dict[str, Any]) -> DeskReply:
        return asked(IDENTITIES[name], self.post.line(name), claim)

    def bring(self, data: bytes, to: str = "north") -> bytes:
        return ask(self.post.line("anybody"), to, ASK, data)


@contextmanager
def running(folders: dict[str, DeskFolder]) -> Iterator[Desk]:
    with ExitStack() as stack:
        opened, stop = stack.enter_context(post()), threading.Event()
        services, threads = {}, []
        for name, folder in folders.items():
            identity = IDENTITIES[name]
            log = stack.enter_context(party_log(identity, folder.path))
            cards = {each: one.card for each, one in IDENTITIES.items()}
            member = LinkMember(identity, cards, opened.line(name), log)
            service = DeskService(folder, member, folder.shared.charter.desk.asks_a_day)
            handlers = service.handlers(own_box(identity))
            told: list[str] = []
            arguments = (member.line, handlers, stop, told.append)
            threads.append(threading.Thread(target=serve, args=arguments))
            services[name] = service
        for thread in threads:
            thread.start()
        try:
            for name in folders:
                opened.until_there(name, ASK)
            yield Desk(opened, services)
        finally:
            stop.set()
            opened.shut()
            for thread in threads:
                thread.join()


def lines(folder: DeskFolder, kind: str) -> list[Any]:
    return [e for e in entries(read_lines(folder.path / "log.jsonl")) if e.kind == kind]


def test_a_claim_that_another_paid_is_found_before_it_is_paid_and_others_are_not(
    tmp_path: Path,
) -> None:
    folders = night(tmp_path)
    with running(folders) as one:
        assert one.ask("fund", CLAIM) == DeskReply("invoice", ("north", "south"))
        renumbered = CLAIM | {"invoice": "new"}
        assert one.ask("fund", renumbered) == DeskReply("visit", ("north", "south"))
        assert one.ask("north", CLAIM) == DeskReply("visit", ("south",))
        assert one.ask("north", CLAIM | {"claimed": 1}) == DeskReply()
    assert [len(lines(folders[name], "request")) for name in IDENTITIES] == [4, 4, 4, 4]
    told = {name for line in lines(folders["south"], "request") for name in line.told}
    assert told == {"statistic", "by", "number"}


def test_where_the_charter_tells_a_match_alone_the_list_names_nobody(tmp_path: Path) -> None:
    folders = night(tmp_path, tells="match")
    names = folders["fund"].names
    assert names is not None and set(names.owners) <= {0, 1}
    with running(folders) as one:
        assert one.ask("fund", CLAIM) == DeskReply("invoice", ())


def test_every_list_is_as_long_as_the_caps_whatever_is_in_it(tmp_path: Path) -> None:
    for folder in night(tmp_path).values():
        if folder.names is not None:
            assert len(folder.names.names) == 2 * 2 * 8
            assert (np.sort(folder.names.names) == folder.names.names).all()


def test_a_payer_asks_as_often_as_the_charter_lets_it_also_after_a_restart(tmp_path: Path) -> None:
    folders = night(tmp_path, desk={"asks_a_day": 2})
    with running(folders) as one:
        one.ask("fund", CLAIM)
        one.ask("fund", CLAIM)
    with running(folders) as one:
        with pytest.raises(PolicyError, match="fund has asked 2 times today"):
            one.ask("fund", CLAIM)
        one.ask("north", CLAIM)
    assert lines(folders["fund"], "refusal")[0].told["rule"] == "rate"


def test_a_claim_with_mistakes_is_refused_in_one_line_and_nothing_is_sent(tmp_path: Path) -> None:
    folders = night(tmp_path)
    with running(folders) as one, pytest.raises(ConfigurationError, match="invoice is missing"):
        one.ask("fund", {k: v for k, v in CLAIM.items() if k != "invoice"})
    assert lines(folders["north"], "request") == lines(folders["fund"], "release") == []


def test_a_service_that_does_not_run_is_named(tmp_path: Path) -> None:
    folders = night(tmp_path)
    here = {name: folders[name] for name in ("fund", "north")}
    with running(here) as one:
        with pytest.raises(PeerError, match="south: does not answer; it must run lab link serve"):
            one.ask("fund", CLAIM)
        with pytest.raises(PeerError, match="south: its own process does not run; start it"):
            one.ask("south", CLAIM)


def test_only_its_own_desk_asks_through_a_service(tmp_path: Path) -> None:
    folders = night(tmp_path)
    with running(folders) as one:
        line = one.post.line("fund")
        with pytest.raises(PeerError, match="altered, or sealed for somebody else"):
            ask_own(Identity("fund", b"t" * 32), line, CLAIMS, b"{}")
        with pytest.raises(PeerError, match="a letter came from nobody who takes part here"):
            ask(line, "north", CLAIMS, _own_letter("fund"))
        again = _own_letter("north")
        assert ask(line, "north", CLAIMS, again)
        with pytest.raises(PeerError, match="north: replays number"):
            ask(line, "north", CLAIMS, again)
    refusals = [line.told["text"] for line in lines(folders["north"], "refusal")]
    assert len(refusals) == 2


def _own_letter(name: str) -> bytes:
    identity, content = IDENTITIES[name], json.dumps(CLAIM).encode()
    letter = Letter(OWN_SESSION, FUTURE, name, name, CLAIMS, content)
    return letter.sealed(identity, identity.card)


def test_a_night_of_another_charter_is_of_no_use_to_the_desk(tmp_path: Path) -> None:
    folder = night(tmp_path)["fund"]
    with ExitStack() as stack:
        log = stack.enter_context(party_log(IDENTITIES["fund"], folder.path))
        opened = stack.enter_context(post())
        member = LinkMember(IDENTITIES["fund"], {}, opened.line("fund"), log, "0" * 64)
        with pytest.raises(ConfigurationError, match="the last night was under another charter"):
            DeskService(folder, member, 9)


# --- letters ---------------------------------------------------------------------------------


def question(folders: dict[str, DeskFolder], number: int, asker: str = "fund") -> dict[str, bytes]:
    folder, identity = folders[asker], IDENTITIES[asker]
    terms = folder.shared.terms
    elements = desk.question(terms, folder.seed, [b"a", b"b"], b"r" * 32)
    signed = ticket(terms.digest, asker, number)
    return {
        "asker": asker.encode(),
        "number": number.to_bytes(8, "big"),
        "ticket": identity.sign(TICKET, signed),
        "elements": elements.tobytes(),
    }


def letter(
    folders: dict[str, DeskFolder], content: dict[str, bytes], number: int, sender: str = "fund"
) -> bytes:
    session = folders["fund"].shared.terms.digest
    whole = Letter(session, number, sender, "north", ASK, packed(content))
    return whole.sealed(IDENTITIES[sender], IDENTITIES["north"].card)


FUTURE = 2**62


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: letter(f, question(f, FUTURE), 5), "fund: replays number 5"),
        (lambda f: letter(f, question(f, 5), FUTURE), "question of fund: replays number 5"),
        (
            lambda f: letter(f, question(f, FUTURE, "north"), FUTURE),
            "fund: brings a question out of",
        ),
        (
            lambda f: letter(f, question(f, FUTURE) | {"number": bytes(8)}, FUTURE),
            "fund: brings a question that fund did not sign",
        ),
        (lambda f: letter(f, {"elements": b""}, FUTURE), "fund: sent a question of nobody"),
        (
            lambda f: letter(f, question(f, FUTURE) | {"elements": b"1"}, FUTURE),
            "fund: sent a message of another size",
        ),
        (
            lambda f: letter(f, question(f, FUTURE) | {"elements": bytes(64)}, FUTURE),
            "fund: sent what is no element",
        ),
        (lambda f: letter(f, question(f, FUTURE), FUTURE)[:-1] + b"\0", "altered, or sealed for"),
    ],
)
def test_a_letter_that_no_honest_role_sends_is_refused_logged_and_its_sender_named(
    tmp_path: Path, change: Any, words: str
) -> None:
    folders = night(tmp_path)
    with running(folders) as one, pytest.raises(PeerError, match=words):
        one.bring(change(folders))
    refusal = lines(folders["north"], "refusal")[0]
    assert words.partition(":")[2].strip() in refusal.told["text"]
    assert not lines(folders["north"], "release")


def test_a_letter_is_taken_once_and_in_its_session_alone(tmp_path: Path) -> None:
    folders = night(tmp_path / "one")
    others = night(tmp_path / "two")
    data = letter(folders, question(folders, FUTURE), FUTURE)
    with running(folders) as one:
        one.services["north"].help(data)
        with pytest.raises(FaultyParty, match="fund: replays number"):
            one.services["north"].help(data)
    with running(others) as one:
        with pytest.raises(FaultyParty, match="fund: sent a letter of another session"):
            one.services["north"].help(data)
        with pytest.raises(MalformedMessage):
            one.services["north"].help(b"{}")


def test_bytes_that_are_nearly_a_letter_raise_nothing_but_refusals(tmp_path: Path) -> None:
    folders = night(tmp_path)
    data = letter(folders, question(folders, FUTURE), FUTURE)
    generator = np.random.default_rng(5)
    with running(folders) as one:
        for _ in range(200):
            broken = bytearray(data)
            for at in generator.integers(0, len(data), 3):
                broken[at] = generator.integers(256)
            cut = bytes(broken)[: generator.integers(1, len(data) + 1)]
            with pytest.raises((FaultyParty, MalformedMessage)):
                one.services["north"].help(cut)
        long = question(folders, FUTURE) | {"number": bytes(9)}
        with pytest.raises(FaultyParty, match="fund: sent a question of nobody"):
            one.services["north"].help(letter(folders, long, FUTURE))
        for body in (b"[]", b"{", b'{"invoice": [1]}', b'{"invoice": {"a": 1}, "day": null}'):
            with pytest.raises(ConfigurationError):
                one.services["north"].own_claim(body)


def test_a_letter_in_the_name_of_another_is_refused(tmp_path: Path) -> None:
    folders = night(tmp_path)
    session = folders["fund"].shared.terms.digest
    forged = Letter(session, FUTURE, "fund", "north", ASK, packed(question(folders, FUTURE)))
    data = forged.sealed(IDENTITIES["south"], IDENTITIES["north"].card)
    lacking = pytest.raises(FaultyParty, match="fund: a letter in its name was altered, or lacks")
    with running(folders) as one, lacking:
        one.services["north"].help(data)


def test_content_that_is_not_readable_names_its_sender() -> None:
    for content in (b"", b"x", packed({"a": b"1"})[:-1]):
        with pytest.raises(FaultyParty, match="north: sent a letter that is not readable"):
            unpacked(content, "north")


def test_a_damaged_list_and_a_folder_without_a_night_are_refused(tmp_path: Path) -> None:
    folder = night(tmp_path)["fund"]
    (folder.path / "owners.bin").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="list of names is damaged"):
        read_desk(folder.path)
    with pytest.raises(ConfigurationError, match="there was no night yet"):
        read_desk(tmp_path)


def test_a_new_night_replaces_what_the_last_one_left(tmp_path: Path) -> None:
    first = night(tmp_path)["fund"]
    second = night(tmp_path)["fund"]
    assert first.shared.session != second.shared.session
    assert first.secrets.seed != second.secrets.seed
    write_desk(first.path, first.shared, first.seed, first.names)
    assert json.loads((first.path / "desk.json").read_text())["session"] == first.shared.session
