"""A log proves itself: whoever changes it is found out, whoever can't write it lets nothing leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federated.deployment.audit_logs import PURPOSE, check, open_log, verify_together, vouched
from lab.audit import log_format as audit
from lab.audit.log_format import Checkpoint, Entry, Verdict, head_file, read_lines
from lab.audit.log_writer import Log
from lab.errors import LogError, PeerError
from secure_agg.identity import Identity

ROOT = Path(__file__).parents[3]
PING_AN = Identity("ping-an", bytes(range(32)))
KEY = PING_AN.card.verifying
RELEASE = {
    "statistic": "moments",
    "hiding": "paillier",
    "arrays": 2,
    "values": 10,
    "bytes": 4096,
    "rows": 1234,
    "key_bits": 2048,
}


def fill(log: Log, *runs: str) -> None:
    for at, run in enumerate(runs):
        log.append("request", run=run, query=f"{run}-{at}", statistic="moments", by="exchange")
        log.append("release", run=run, query=f"{run}-{at}", **RELEASE)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of a log that ends with a checkpoint."""
    path = tmp_path_factory.mktemp("signed") / "log.jsonl"
    with open_log(path, PING_AN, charter="ab" * 32, every=4) as log:
        fill(log, "r1", "r2", "r1")
    return list(read_lines(path))


def fault(lines: list[bytes], *known: Checkpoint, key: bytes = KEY) -> str:
    return audit.verify(lines, check, key=key, checkpoints=known).fault


def last_word(lines: list[bytes]) -> Checkpoint:
    """The checkpoint at the end, as the head file and the other parties have it."""
    before, entry = (audit.parsed(line) for line in lines[-2:])
    assert isinstance(before, Entry)
    assert isinstance(entry, Entry)
    told = {"party": "ping-an", "seq": before.seq, "head": before.chain, "time": entry.time}
    return Checkpoint.of(told | dict(entry.told))


def sealed_anew(lines: list[bytes]) -> list[bytes]:
    """What a forger without the key can do: numbers and chains that fit again."""
    out, chain = [], audit.START
    for seq, line in enumerate(lines):
        entry = audit.parsed(line)
        assert isinstance(entry, Entry)
        entry = replace(entry, seq=seq)
        chain = audit.chained(chain, entry.digest)
        out.append(replace(entry, chain=chain.hex()).line() + b"\n")
    return out


def altered(line: bytes, **told: Any) -> bytes:
    entry = audit.parsed(line)
    assert isinstance(entry, Entry)
    return replace(entry, told={**entry.told, **told}).line() + b"\n"


def test_a_log_that_nobody_touched_holds(signed: list[bytes]) -> None:
    verdict = audit.verify(signed, check, key=KEY, checkpoints=[last_word(signed)])
    assert not verdict.fault
    assert (verdict.party, verdict.unsigned) == ("ping-an", 0)
    assert verdict.lines == len(signed)


def test_a_change_of_a_bit_anywhere_is_found(signed: list[bytes]) -> None:
    whole, word = b"".join(signed), last_word(signed)
    for at in [*range(0, len(whole), 3), len(whole) - 1]:
        bad = whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
        assert fault(bad.splitlines(keepends=True), word), at


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_edit_of_lines_is_found(signed: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(signed) - 1))
    other = data.draw(st.integers(0, len(signed) - 1))
    lines = list(signed)
    match data.draw(st.sampled_from(["delete", "double", "swap", "cut", "insert", "bytes"])):
        case "delete":
            del lines[at]
        case "double":
            lines.insert(other, lines[at])
        case "swap":
            lines[at], lines[other] = lines[other], lines[at]
        case "cut":
            del lines[at:]
        case "insert":
            lines.insert(at, altered(lines[1], by="somebody"))
        case "bytes":
            start = data.draw(st.integers(0, len(lines[at])))
            end = data.draw(st.integers(start, len(lines[at])))
            lines[at] = lines[at][:start] + data.draw(st.binary(max_size=9)) + lines[at][end:]
    for bad in (lines, b"".join(lines).splitlines(keepends=True)):
        assert (b"".join(bad) == b"".join(signed)) or fault(bad, last_word(signed))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_forger_without_the_key_is_found_even_if_chains_fit_again(
    signed: list[bytes], data: st.DataObject
) -> None:
    lines = list(signed)
    at = data.draw(st.integers(1, len(lines) - 1))
    match data.draw(st.sampled_from(["told", "time", "delete", "cut"])):
        case "told":
            lines[at] = altered(lines[at], rows=1)
        case "time":
            entry = audit.parsed(lines[at])
            assert isinstance(entry, Entry)
            lines[at] = replace(entry, time="2020-01-01T00:00:00.000000Z").line() + b"\n"
        case "delete":
            del lines[at]
        case "cut":
            del lines[at:]
    forged = sealed_anew(lines)
    assert fault(forged, last_word(signed))


def test_the_first_bad_line_is_named(signed: list[bytes]) -> None:
    lines = [*signed[:4], altered(signed[4], rows=1), *signed[5:]]
    assert fault(lines).startswith("line 5: does not follow from the line before")
    assert fault([*signed[:3], *signed[4:]]).startswith("line 4: has number 4 where 3 belongs")
    assert fault([b"{}\n", *signed]).startswith("line 1: is not a line of a log")


def test_an_old_signature_does_not_sign_new_lines(tmp_path: Path, signed: list[bytes]) -> None:
    """A checkpoint line that quotes an older head, so that the lines since then look signed."""
    word = last_word(signed)
    told = {"signature": word.signature, "seq": word.seq, "head": word.head, "time": word.time}
    extra = altered(signed[1], by="forger", line_of_run=5)
    blank = Entry(0, word.time, "checkpoint", "", "", "", told, "")
    lines = sealed_anew([*signed, extra, blank.line() + b"\n"])
    assert "is not signed by the party's key" in fault(lines)


def test_a_checkpoint_tells_nothing_that_is_not_signed(signed: list[bytes]) -> None:
    entry = audit.parsed(signed[-1])
    assert isinstance(entry, Entry)
    loaded = replace(entry, run="r1").line() + b"\n"
    assert "holds more than what is signed" in fault(sealed_anew([*signed[:-1], loaded]))


def test_a_log_under_another_key_is_refused(signed: list[bytes]) -> None:
    other = Identity.generate("ping-an").card.verifying
    assert "names another key" in fault(signed, key=other)


def test_a_cut_to_an_older_checkpoint_is_found_by_what_others_keep(
    tmp_path: Path, signed: list[bytes]
) -> None:
    """Alone the shorter log looks sound; the head file or a peer's log shows that it is not."""
    ends = [at for at, line in enumerate(signed) if b'"kind":"checkpoint"' in line]
    shorter = signed[: ends[0] + 1]
    assert not fault(shorter)
    assert "are gone" in fault(shorter, last_word(signed))
    path = tmp_path / "ping-an" / "log.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"".join(shorter))
    peer = Identity.generate("city fund")
    with open_log(tmp_path / "log.jsonl", peer) as log:
        vouched(last_word(signed), PING_AN.card)
        log.witness(last_word(signed))
    found = {c.verdict.party: c for c in verify_together([path, tmp_path / "log.jsonl"], {})}
    assert "are gone" in found["ping-an"].verdict.fault
    assert not found["city fund"].verdict.fault


def test_a_party_that_writes_its_log_anew_with_its_own_key_is_found_by_its_peers(
    tmp_path: Path, signed: list[bytes]
) -> None:
    with open_log(tmp_path / "log.jsonl", PING_AN, charter="ab" * 32, every=4) as log:
        fill(log, "r2", "r2", "r2", "r2")
    lines = list(read_lines(tmp_path / "log.jsonl"))
    assert not fault(lines)
    assert "was changed and signed anew" in fault(lines, last_word(signed))


def test_a_peer_cannot_accuse_with_a_checkpoint_it_made_up(
    tmp_path: Path, signed: list[bytes]
) -> None:
    forged = replace(last_word(signed), seq=99)
    with pytest.raises(LogError, match="did not sign"):
        vouched(forged, PING_AN.card)
    with pytest.raises(LogError, match="did not sign"):
        vouched(last_word(signed), Identity.generate("ping-an").card)
    (tmp_path / "ping-an").mkdir()
    path = tmp_path / "ping-an" / "log.jsonl"
    path.write_bytes(b"".join(signed))
    with open_log(tmp_path / "log.jsonl", Identity.generate("liar")) as log:
        log.witness(forged)
    honest, _ = verify_together([path, tmp_path / "log.jsonl"], {})
    assert (honest.verdict.fault, honest.witnesses) == ("", 0)


def test_lines_after_the_last_checkpoint_are_told_as_unsigned(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log.jsonl", PING_AN)
    log.append("request", statistic="totals", by="exchange")
    verdict = audit.verify(read_lines(log.path), check, key=KEY)
    assert (verdict.fault, verdict.unsigned, verdict.checkpoints) == ("", 2, 0)
    log.close()


def test_a_checkpoint_comes_by_itself_after_so_many_lines(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log.jsonl", PING_AN, every=8)
    fill(log, *["r"] * 20)
    verdict = audit.verify(read_lines(log.path), check, key=KEY)
    assert verdict.checkpoints == 5
    assert verdict.unsigned < 8
    log.close()


def test_a_torn_last_line_is_set_aside_kept_and_told(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with open_log(path, PING_AN) as log:
        fill(log, "r1")
    whole, tail = path.read_bytes(), b'{"chain":"18e48c\x00\x00\x00'
    path.write_bytes(whole + tail)
    (found,) = verify_together([path], {})
    assert "cut off in the middle" in found.verdict.fault
    open_log(path, PING_AN).close()
    told = [e for e in audit.entries(read_lines(path)) if e.kind == "fault"]
    (kept,) = tmp_path.glob("log.torn-*")
    assert kept.read_bytes() == tail
    assert kept.stat().st_mode & 0o077 == 0
    assert kept.name in told[0].told["what"]
    assert path.read_bytes().startswith(whole)
    assert not verify_together([path], {})[0].verdict.fault


def test_a_tear_into_what_was_signed_is_not_a_power_loss(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with open_log(path, PING_AN) as log:
        fill(log, "r1")
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(LogError, match="are gone"):
        open_log(path, PING_AN)


@pytest.mark.parametrize("cut", [0, 7])
def test_a_first_line_that_was_never_whole_is_begun_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"chain'[:cut])
    open_log(path, PING_AN).close()
    assert not fault(list(read_lines(path)))


def test_a_log_that_does_not_hold_together_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with open_log(path, PING_AN) as log:
        fill(log, "r1")
    good = path.read_bytes()
    path.write_bytes(good.replace(b"1234", b"1235"))
    with pytest.raises(LogError, match="line 3: does not follow"):
        open_log(path, PING_AN)
    path.write_bytes(good)
    head_file(path).write_text("{")
    with pytest.raises(LogError, match="file beside the log is damaged"):
        open_log(path, PING_AN)
    head_file(path).unlink()
    with pytest.raises(LogError, match="another key"):
        open_log(path, Identity.generate("ping-an"))


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with open_log(path, PING_AN), pytest.raises(LogError, match="another process writes"):
        open_log(path, PING_AN)
    open_log(path, PING_AN).close()


def test_a_log_is_its_owners_alone(tmp_path: Path) -> None:
    with open_log(tmp_path / "log.jsonl", PING_AN) as log:
        log.checkpoint()
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_threads_write_one_chain(tmp_path: Path) -> None:
    with open_log(tmp_path / "log.jsonl", PING_AN, every=10) as log:
        threads = [threading.Thread(target=fill, args=(log, *["r"] * 10)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    verdict = audit.verify(read_lines(log.path), check, key=KEY)
    assert not verdict.fault
    assert verdict.lines == 1 + 80 + 1 + verdict.checkpoints


def test_times_are_utc_whatever_the_clock_of_the_machine(tmp_path: Path) -> None:
    noon = datetime(2026, 11, 26, 20, 0, tzinfo=timezone(timedelta(hours=8)))
    log = Log(
        tmp_path / "log.jsonl",
        "ping-an",
        KEY,
        lambda message: PING_AN.sign(PURPOSE, message),
        check,
        clock=lambda: noon,
    )
    log.close()
    times = {entry.time for entry in audit.entries(read_lines(log.path))}
    assert times == {"2026-11-26T12:00:00.000000Z"}
    assert datetime.fromisoformat(times.pop()).tzinfo == UTC


@pytest.mark.parametrize(
    ("kind", "told", "words"),
    [
        ("release", {"statistic": "moments"}, "must tell hiding, arrays"),
        ("gossip", {}, "known kind"),
        ("fault", {"what": float("nan")}, "not JSON"),
        ("fault", {"what": object()}, "not JSON"),
        ("fault", {"what": "x" * 2**20}, "too long"),
    ],
)
def test_a_line_that_says_too_little_or_is_no_json_is_refused(
    tmp_path: Path, kind: str, told: dict[str, Any], words: str
) -> None:
    with open_log(tmp_path / "log.jsonl", PING_AN) as log, pytest.raises(LogError, match=words):
        log.append(kind, **told)
    assert not fault(list(read_lines(log.path)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\n\u2028é"), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@given(JSON)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_a_line_tells_is_read_back(tmp_path: Path, what: Any) -> None:
    path = tmp_path / "log.jsonl"
    path.unlink(missing_ok=True)
    head_file(path).unlink(missing_ok=True)
    with open_log(path, PING_AN) as log:
        log.append("fault", what=what)
    assert not fault(list(read_lines(path)))
    told = [e.told["what"] for e in audit.entries(read_lines(path)) if e.kind == "fault"]
    assert told == [what]


def child(code: str, path: Path, *, wait: bool = True) -> subprocess.Popen[str]:
    opening = (
        "import sys, os, resource, signal; from pathlib import Path;"
        "from federated.deployment.audit_logs import open_log; from secure_agg.identity import Identity;"
        "log = open_log(Path(sys.argv[1]), Identity('ping-an', bytes(range(32))));\n"
    )
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", opening + code, str(path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


FULL = """
from lab.errors import LogError
size = os.fstat(log._file).st_size
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 700, hard))
written = 0
try:
    while True:
        log.append("request", run="r", query=str(written), statistic="totals", by="exchange")
        written += 1
except LogError as error:
    print(written, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
try:
    log.checkpoint()
except LogError as error:
    print("no checkpoint either")
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
log.append("request", run="r", query="after", statistic="totals", by="exchange")
log.close()
"""


def test_a_full_disk_raises_before_anything_leaves_and_leaves_the_log_whole(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log.jsonl"
    out, error = child(FULL, path).communicate(timeout=60)
    assert "nothing leaves without a line in it" in out, error
    assert "no checkpoint either" in out
    queries = [e.query for e in audit.entries(read_lines(path)) if e.kind == "request"]
    assert queries == [*map(str, range(int(out.split()[0]))), "after"]
    assert not verify_together([path], {"ping-an": KEY})[0].verdict.fault


def test_a_writer_that_is_killed_leaves_a_log_that_holds(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = (
        "print('up', flush=True)\n"
        "while True: log.append('request', statistic='means', by='exchange')"
    )
    writer = child(code, path)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "up\n"
    threading.Event().wait(0.2)
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=60)
    with open_log(path, PING_AN) as log:
        fill(log, "r")
    verdict = verify_together([path], {})[0].verdict
    assert not verdict.fault
    assert verdict.lines > 20


def test_an_extract_shows_one_run_verifies_and_betrays_nothing_else(
    tmp_path: Path, signed: list[bytes]
) -> None:
    lines = audit.extract(signed, "r1")
    verdict = audit.verify(lines, check, key=KEY)
    assert not verdict.fault
    hidden = [line for line in signed if b'"run":"r2"' in line or b'"kind":"stop"' in line]
    assert verdict.omitted == len(hidden) == 3
    assert {e.run for e in audit.entries(lines)} == {"r1", ""}
    assert not any(b"r2" in line for line in lines)
    for at in range(len(lines)):
        bad = [*lines[:at], *lines[at + 1 :]]
        assert fault(bad, last_word(signed)) or b"".join(bad) == b"".join(lines)


def test_lines_that_an_extract_omits_cannot_be_guessed(tmp_path: Path) -> None:
    """Two logs with the same clock and content have no digest in common, for each line is salted."""
    found = []
    for name in "ab":
        (tmp_path / name).mkdir()
        with Log(
            tmp_path / name / "log.jsonl",
            "ping-an",
            KEY,
            lambda message: PING_AN.sign(PURPOSE, message),
            check,
            clock=lambda: datetime(2026, 1, 1, tzinfo=UTC),
        ) as log:
            fill(log, "r1")
        found.append({e.digest for e in audit.entries(read_lines(log.path)) if e.run})
    assert not found[0] & found[1]


def test_an_extract_of_lines_that_are_not_signed_yet_is_refused(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log.jsonl", PING_AN)
    fill(log, "r1")
    with pytest.raises(LogError, match="not signed yet"):
        audit.extract(read_lines(log.path), "r1")
    with pytest.raises(LogError, match="no line of run r9"):
        audit.extract(read_lines(log.path), "r9")
    log.close()


@given(st.lists(st.binary(max_size=40) | st.just(b"{}"), max_size=4))
def test_whatever_a_file_holds_a_verdict_comes_and_no_traceback(lines: list[bytes]) -> None:
    verdict = audit.verify([line + b"\n" for line in lines], check)
    assert isinstance(verdict, Verdict)
    assert bool(verdict.fault) == bool(lines)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda e: e | {"kind": []},
        lambda e: e | {"told": {"party": [], "key": "zz", "version": 1}},
        lambda e: e | {"seq": True},
        lambda e: e | {"extra": 1},
    ],
)
def test_a_line_of_wrong_types_is_a_fault(
    signed: list[bytes], spoil: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    line = audit.canonical(spoil(json.loads(signed[0]))) + b"\n"
    assert fault([line, *signed[1:]]).startswith("line 1")


def test_errors_of_logs_travel_by_their_name() -> None:
    from federated.messages import refusal, refuse

    told = refusal(refuse(LogError("log of ping-an: cannot be written"), "ping-an"))
    assert type(told) is LogError
    assert not isinstance(told, PeerError)
