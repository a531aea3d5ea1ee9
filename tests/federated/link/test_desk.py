"""One claim at the desk: services of real sockets, who learns what, what is refused and who is named."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federated.link import desk, service
from federated.link.charter import LinkCharter
from federated.link.desk_folder import DeskFolder, read_desk, write_desk
from federated.link.letters import Letter, packed, unpacked
from federated.link.night import desk_of
from federated.link.ring import COORDINATOR
from federated.link.service import ASK, DeskReply, DeskService, asked, posted, served
from lab.audit.log_format import entries, read_lines
from lab.errors import ConfigurationError, PeerError, PolicyError
from secure_agg.errors import FaultyParty, MalformedMessage
from secure_agg.identity import Identity
from tests.federated.link.test_duplicates import BILL, CLAIM, PAYERS, charter, table

IDENTITIES = {name: Identity(name, name.encode().ljust(32)) for name in (*PAYERS, COORDINATOR)}


def addresses() -> dict[str, str]:
    """Free ports of this machine."""
    holders = [socket.socket() for _ in IDENTITIES]
    for holder in holders:
        holder.bind(("127.0.0.1", 0))
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return {name: f"127.0.0.1:{port}" for name, port in zip(IDENTITIES, ports, strict=True)}


def night(folder: Path, **changes: Any) -> dict[str, DeskFolder]:
    tables = {
        "fund": table((1, "F9", "P1", 3, 80)),
        "north": table(BILL),
        "south": table((1, "S2", "P1", 3, 80), (7, "S1", "P1", 20, 500)),
    }
    cards = {name: identity.card for name, identity in IDENTITIES.items()}
    terms: LinkCharter = charter(**changes)
    desk_of(tables, terms, folder, cards, addresses())
    return {name: read_desk(folder / name) for name in IDENTITIES}


@contextmanager
def running(folders: dict[str, DeskFolder]) -> Iterator[dict[str, DeskService]]:
    services = {name: DeskService(folder, IDENTITIES[name]) for name, folder in folders.items()}
    servers = [served(each) for each in services.values()]
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield services
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
        for each in services.values():
            each.log.close()


def lines(folder: DeskFolder, kind: str) -> list[Any]:
    return [e for e in entries(read_lines(folder.path / "log.jsonl")) if e.kind == kind]


def test_a_claim_that_another_paid_is_found_before_it_is_paid_and_others_are_not(
    tmp_path: Path,
) -> None:
    folders = night(tmp_path)
    with running(folders):
        assert asked(folders["fund"], "fund", CLAIM) == DeskReply("invoice", ("north", "south"))
        renumbered = CLAIM | {"invoice": "new"}
        assert asked(folders["fund"], "fund", renumbered) == DeskReply("visit", ("north", "south"))
        assert asked(folders["north"], "north", CLAIM) == DeskReply("visit", ("south",))
        assert asked(folders["north"], "north", CLAIM | {"claimed": 1}) == DeskReply()
    assert [len(lines(folders[name], "request")) for name in IDENTITIES] == [4, 4, 4, 4]
    told = {name for line in lines(folders["south"], "request") for name in line.told}
    assert told == {"statistic", "by", "number"}


def test_where_the_charter_tells_a_match_alone_the_list_names_nobody(tmp_path: Path) -> None:
    folders = night(tmp_path, tells="match")
    names = folders["fund"].names
    assert names is not None and set(names.owners) <= {0, 1}
    with running(folders):
        assert asked(folders["fund"], "fund", CLAIM) == DeskReply("invoice", ())


def test_every_list_is_as_long_as_the_caps_whatever_is_in_it(tmp_path: Path) -> None:
    for folder in night(tmp_path).values():
        if folder.names is not None:
            assert len(folder.names.names) == 2 * 2 * 8
            assert (np.sort(folder.names.names) == folder.names.names).all()


def test_a_payer_asks_as_often_as_the_charter_lets_it_also_after_a_restart(tmp_path: Path) -> None:
    folders = night(tmp_path, desk={"asks_a_day": 2})
    with running(folders):
        asked(folders["fund"], "fund", CLAIM)
        asked(folders["fund"], "fund", CLAIM)
    with running(folders):
        with pytest.raises(PolicyError, match="fund has asked 2 times today"):
            asked(folders["fund"], "fund", CLAIM)
        asked(folders["north"], "north", CLAIM)
    assert lines(folders["fund"], "refusal")[0].told["rule"] == "rate"


def test_a_claim_with_mistakes_is_refused_in_one_line_and_nothing_is_sent(tmp_path: Path) -> None:
    folders = night(tmp_path)
    with running(folders), pytest.raises(ConfigurationError, match="invoice is missing"):
        asked(folders["fund"], "fund", {k: v for k, v in CLAIM.items() if k != "invoice"})
    assert lines(folders["north"], "request") == lines(folders["fund"], "release") == []


def test_a_service_that_does_not_run_is_named(tmp_path: Path) -> None:
    folders = night(tmp_path)
    with pytest.raises(PeerError, match=r"fund: does not answer at 127.0.0.1:\d+; start it with"):
        asked(folders["fund"], "fund", CLAIM)
    here = {name: folders[name] for name in ("fund", "north")}
    with running(here), pytest.raises(PeerError, match="south: does not answer"):
        asked(folders["fund"], "fund", CLAIM)


def test_only_its_own_desk_asks_through_a_service(tmp_path: Path) -> None:
    folders = night(tmp_path)
    thief = replace(folders["fund"], secrets=folders["north"].secrets)
    with running(folders), pytest.raises(PeerError, match="refuses, and does not say why"):
        asked(thief, "fund", CLAIM)


def test_a_service_answers_on_this_machine_alone(tmp_path: Path) -> None:
    folder = night(tmp_path)["fund"]
    shared = folder.shared.model_copy(
        update={"addresses": folder.shared.addresses | {"fund": "0.0.0.0:7101"}}
    )
    one = DeskService(replace(folder, shared=shared), IDENTITIES["fund"])
    with pytest.raises(ConfigurationError, match="on this machine alone"):
        served(one)
    one.log.close()


# --- letters ---------------------------------------------------------------------------------


def question(folders: dict[str, DeskFolder], number: int, asker: str = "fund") -> dict[str, bytes]:
    folder, identity = folders[asker], IDENTITIES[asker]
    terms = folder.shared.terms
    elements = desk.question(terms, folder.seed, [b"a", b"b"], b"r" * 32)
    ticket = service._ticket(terms.digest, asker, number)
    return {
        "asker": asker.encode(),
        "number": number.to_bytes(8, "big"),
        "ticket": identity.sign(service.TICKET, ticket),
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
    with running(folders), pytest.raises(PeerError, match=words):
        posted(folders["north"].shared.addresses["north"], "/letter", change(folders), "north")
    refusal = lines(folders["north"], "refusal")[0]
    assert words.partition(":")[2].strip() in refusal.told["text"]
    assert not lines(folders["north"], "release")


def test_a_letter_is_taken_once_and_in_its_session_alone(tmp_path: Path) -> None:
    folders = night(tmp_path / "one")
    others = night(tmp_path / "two")
    data = letter(folders, question(folders, FUTURE), FUTURE)
    with running(folders) as services:
        services["north"].help(data)
        with pytest.raises(FaultyParty, match="fund: replays number"):
            services["north"].help(data)
    with running(others) as services:
        with pytest.raises(FaultyParty, match="fund: sent a letter of another session"):
            services["north"].help(data)
        with pytest.raises(MalformedMessage):
            services["north"].help(b"{}")


def test_bytes_that_are_nearly_a_letter_raise_nothing_but_refusals(tmp_path: Path) -> None:
    folders = night(tmp_path)
    data = letter(folders, question(folders, FUTURE), FUTURE)
    generator = np.random.default_rng(5)
    with running(folders) as services:
        for _ in range(200):
            broken = bytearray(data)
            for at in generator.integers(0, len(data), 3):
                broken[at] = generator.integers(256)
            cut = bytes(broken)[: generator.integers(1, len(data) + 1)]
            with pytest.raises((FaultyParty, MalformedMessage)):
                services["north"].help(cut)
        long = question(folders, FUTURE) | {"number": bytes(9)}
        with pytest.raises(FaultyParty, match="fund: sent a question of nobody"):
            services["north"].help(letter(folders, long, FUTURE))
        for body in (b"[]", b"{", b'{"invoice": [1]}', b'{"invoice": {"a": 1}, "day": null}'):
            status, reply = service._claim(services["north"], body)
            assert status == 409 and json.loads(reply)["kind"] == "configuration"


def test_a_letter_in_the_name_of_another_is_refused(tmp_path: Path) -> None:
    folders = night(tmp_path)
    session = folders["fund"].shared.terms.digest
    forged = Letter(session, FUTURE, "fund", "north", ASK, packed(question(folders, FUTURE)))
    data = forged.sealed(IDENTITIES["south"], IDENTITIES["north"].card)
    lacking = pytest.raises(FaultyParty, match="fund: a letter in its name was altered, or lacks")
    with running(folders) as services, lacking:
        services["north"].help(data)


def test_content_that_is_not_readable_names_its_sender() -> None:
    for content in (b"", b"x", packed({"a": b"1"})[:-1]):
        with pytest.raises(FaultyParty, match="north: sent a letter that is not readable"):
            unpacked(content, "north")


def test_an_identity_that_takes_no_part_and_a_damaged_list_are_refused(tmp_path: Path) -> None:
    folder = night(tmp_path)["fund"]
    with pytest.raises(ConfigurationError, match="this identity takes no part"):
        DeskService(folder, Identity("fund", b"x" * 32))
    (folder.path / "owners.bin").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="list of names is damaged"):
        read_desk(folder.path)


def test_a_new_night_replaces_what_the_last_one_left(tmp_path: Path) -> None:
    first = night(tmp_path)["fund"]
    second = night(tmp_path)["fund"]
    assert first.shared.session != second.shared.session
    assert first.secrets.password != second.secrets.password
    write_desk(first.path, first.shared, first.seed, first.names)
    assert json.loads((first.path / "desk.json").read_text())["session"] == first.shared.session
