"""Calls that the exchange passes on: to whom, from whom, once, and what it refuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from federated.transport.relay import (
    EXPIRES_SECONDS,
    LINK,
    MOST_CALLS,
    PRESENT_SECONDS,
    Relay,
    RelayRefusal,
    place_of,
)
from federated.transport.relay_line import Unreachable
from lab.errors import PeerError
from tests.rigs.relayed import LIMIT, Post, post


@pytest.fixture
def open_post() -> Iterator[Post]:
    with post() as opened:
        yield opened


def test_a_call_reaches_its_member_with_the_callers_name_and_the_reply_comes_back(
    open_post: Post,
) -> None:
    calls = []

    def serve() -> None:
        line = open_post.line("保险 south")
        for _ in range(2):
            call = line.next(["ask", "night"])
            assert call is not None
            calls.append((call.caller, call.service, call.data))
            line.reply(call, call.data[::-1])

    thread = threading.Thread(target=serve)
    thread.start()
    north = open_post.line("north")
    _until_there(north, "保险 south", "ask")
    assert north.call("保险 south", "ask", b"once") == b"ecno"
    thread.join()
    assert calls[-1] == ("north", "ask", b"once")


def _until_there(line, to: str, service: str) -> None:  # type: ignore[no-untyped-def]
    """Call until somebody waits there."""
    for _ in range(200):
        try:
            line.call(to, service, b"there?", 5)
            return
        except Unreachable:
            time.sleep(0.01)
    raise AssertionError("nobody came")


def test_who_does_not_wait_or_does_not_reply_is_named(open_post: Post) -> None:
    north, south = open_post.line("north"), open_post.line("south")
    with pytest.raises(Unreachable, match="south: does not answer; it must run lab link serve"):
        north.call("south", "ask", b"x")
    waiting = threading.Thread(target=south.next, args=(["ask"],))
    waiting.start()
    time.sleep(0.1)
    with pytest.raises(Unreachable, match="south: does not answer") as error:
        north.call("south", "ask", b"x", patience=1)
    assert error.value.culprits == ("south",)
    waiting.join()


def test_a_body_that_is_too_long_is_refused_with_both_sizes(open_post: Post) -> None:
    with pytest.raises(PeerError, match=f"413: the body has {LIMIT + 1} bytes, the limit is"):
        open_post.line("north").call("south", "ask", bytes(LIMIT + 1))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> tuple[Relay, str, str]:
    """A relay in which south waits, the number of a call by north that south took."""
    relay, to = Relay(100, clock), place_of("south")
    relay.handle("south", f"{LINK}next/ask", b"")
    number = relay.handle("north", f"{LINK}call/ask/{to}", b"x").decode()
    assert relay.handle("south", f"{LINK}next/night,ask", b"")
    return relay, number, to


def test_a_call_is_handed_out_once_and_answered_once_by_its_recipient_to_its_caller() -> None:
    relay, number, _ = opened(Clock())
    assert relay.handle("south", f"{LINK}next/ask", b"") == b""
    assert relay.handle("north", f"{LINK}answer/{number}", b"") == b""
    for caller, path, body in (
        ("north", f"reply/{number}", b"forged"),
        ("third", f"reply/{number}", b"forged"),
        ("third", f"answer/{number}", b""),
        ("south", f"reply/{number}", b""),
    ):
        with pytest.raises(RelayRefusal):
            relay.handle(caller, LINK + path, body)
    relay.handle("south", f"{LINK}reply/{number}", b"yes")
    with pytest.raises(RelayRefusal):
        relay.handle("south", f"{LINK}reply/{number}", b"no")
    assert relay.handle("north", f"{LINK}answer/{number}", b"") == b"yes"
    with pytest.raises(RelayRefusal):
        relay.handle("north", f"{LINK}answer/{number}", b"")


def test_calls_are_forgotten_and_whoever_left_is_not_there() -> None:
    clock = Clock()
    relay, number, to = opened(clock)
    clock.now = PRESENT_SECONDS + 1
    with pytest.raises(RelayRefusal, match="nobody waits"):
        relay.handle("north", f"{LINK}call/ask/{to}", b"x")
    clock.now = EXPIRES_SECONDS + 1
    with pytest.raises(RelayRefusal, match="no call under way"):
        relay.handle("north", f"{LINK}answer/{number}", b"")


def test_a_call_that_its_caller_dropped_is_handed_to_nobody_and_a_service_can_say_it_is_gone() -> (
    None
):
    relay, _, to = opened(Clock())
    number = relay.handle("north", f"{LINK}call/ask/{to}", b"x").decode()
    relay.handle("third", f"{LINK}drop/{number}", b"")
    relay.handle("north", f"{LINK}drop/{number}", b"")
    assert relay.handle("south", f"{LINK}next/ask", b"") == b""
    relay.handle("third", f"{LINK}gone/ask", b"")
    relay.handle("north", f"{LINK}call/ask/{to}", b"x")
    relay.handle("south", f"{LINK}gone/ask", b"")
    with pytest.raises(RelayRefusal, match="nobody waits"):
        relay.handle("north", f"{LINK}call/ask/{to}", b"x")


def test_a_members_calls_under_way_are_bounded_in_number_and_bytes() -> None:
    relay, _, to = opened(Clock())
    relay.handle("third", f"{LINK}call/ask/{to}", bytes(150))
    with pytest.raises(RelayRefusal, match="too many calls") as error:
        relay.handle("third", f"{LINK}call/ask/{to}", bytes(51))
    assert error.value.status == 429
    for _ in range(MOST_CALLS - 1):
        relay.handle("north", f"{LINK}call/ask/{to}", b"x")
    with pytest.raises(RelayRefusal, match="too many calls"):
        relay.handle("north", f"{LINK}call/ask/{to}", b"x")


@pytest.mark.parametrize(
    "path",
    ["", "call/ask", "call/../x", "call/ask/zz", "next/", "next/ask,", "next/A", "drop", "keep/1"],
)
def test_another_route_is_refused(path: str) -> None:
    with pytest.raises(RelayRefusal) as error:
        Relay(100).handle("north", LINK + path, b"x")
    assert error.value.status == 404
