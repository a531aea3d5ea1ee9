"""A million hostile inputs for everything that is read from bytes.

Each input is a true message that was altered. A reader refuses it with an error of this package, or
it reads it right: what was read gives the very same bytes again. Run as a program, this file is the
process that does the reading, with 256 MB to spare.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import gmpy2
import numpy as np
import pytest
from gmpy2 import mpz

from secure_agg import keys, masks, shares, wire
from secure_agg.arithmetic.blinding import with_part
from secure_agg.errors import FaultyParty, InconsistentSum, MalformedMessage, SecureAggError
from secure_agg.identity import CARD, Card, Identity, Roster
from secure_agg.keys import PrivateKey
from secure_agg.masks import KEYS, Keys, Revealed, Seat
from secure_agg.packing import Field, Layout, pack
from secure_agg.paillier import HEADER, Batch, add, decrypt
from secure_agg.shares import SHARE, KeyShare, Part, SplitKey
from secure_agg.transcript import Contribution, Terms, Transcript, contribute, received
from tests.secure_agg.conftest import in_a_child

SEED = 2031
INPUTS = 1_000_000
SPARE_BYTES = 256 * 2**20
NAMES = ("Alba", "Bora", "Číma", "Dora", "Enna")
PEOPLE = {name: Identity(name, wire.digest(b"SAGGTEST", [name.encode()])) for name in NAMES}
ROSTER = Roster(tuple(person.card for person in PEOPLE.values()))
FORM = (Field(9, 1000.0, 2.0**-20), Field(20, 2.0**60, 2.0**-64))
LAYOUT = Layout(FORM, 5, 2048)  # two ciphertexts, the second with 1000 bits to spare
PASSPHRASE = "a passphrase for the tests"

# What a length or a count may be replaced by.
COUNTS = [value.to_bytes(4, "big") for value in (0, 1, 2**20, 2**31 - 1, 2**31, 2**32 - 1)]
# What a value or a name in JSON may be replaced by.
TOKENS = [
    *(b"0", b"-0", b"1", b"8", b"1048576", b"2147483648", b"4294967295", b"1e999"),
    *(b"18446744073709551616", b"-" + b"9" * 4000, b"9" * 4300, b"9" * 4301, b"1" * 20_000),
    *(b"NaN", b"-Infinity", b"1.0", b"true", b"null", b"[]", b"{}", b'""', b'"A"', b'"\\ud800"'),
    *(b"[" * 10_000, b'{"":' * 10_000, b"[" + b"0," * 10_000 + b"0]", b'{"a":1,"a":2}'),
    *(b'"8"', b'"0x8"', b'"nan"', b'"inf"', b'"0x1p99999"', b'"0x1p-1074"', b'"0X1.0P+60"', b" 3"),
]
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*')


# Altering


class Alteration:
    """Alters messages: the same ones in the same way for the same seed."""

    def __init__(self, seed: str, private: PrivateKey) -> None:
        self.random = random.Random(seed)
        n, p = private.public.n, private.p
        some = [0, 1, 2, p, n - 1, n, n + 1, 2 * n, p * n, n * n - n, n * n - 1, n * n, n * n + 1]
        self.numbers = [mpz(x) for x in some]
        self.n = n

    def below(self, most: int) -> int:
        return int(self.random.random() * most)

    def of(self, data: bytes, other: bytes) -> bytes:
        """One alteration, now and then two. other: another message of this kind"""
        data = self._once(data, other)
        return self._once(data, other) if self.below(5) == 0 else data

    def _once(self, data: bytes, other: bytes) -> bytes:
        ways = _ways(data)
        return ways[self.below(len(ways))](self, data, other)

    # Bytes

    def flipped(self, data: bytes, other: bytes) -> bytes:
        bent = bytearray(data)
        for _ in range(1 + self.below(3)):
            bent[self.below(len(bent))] ^= 1 << self.below(8)
        return bytes(bent)

    def overwritten(self, data: bytes, other: bytes) -> bytes:
        at, size = self.below(len(data)), 1 + self.below((8, 8, 600)[self.below(3)])
        fill = (self.random.randbytes(size), bytes(size), b"\xff" * size)[self.below(3)]
        return data[:at] + fill + data[at + size :]

    def truncated(self, data: bytes, other: bytes) -> bytes:
        return data[: self.below(len(data))]

    def extended(self, data: bytes, other: bytes) -> bytes:
        size = 1 + self.below(64)
        return data + (self.random.randbytes(size), bytes(size), data, other)[self.below(4)]

    def spliced(self, data: bytes, other: bytes) -> bytes:
        at = self.below(len(data))
        return data[:at] + other[at if self.below(2) else self.below(len(other) + 1) :]

    def recounted(self, data: bytes, other: bytes) -> bytes:
        places = _counts(data)
        at = places[self.below(len(places))]
        return data[:at] + COUNTS[self.below(len(COUNTS))] + data[at + 4 :]

    # Parts

    def swapped(self, data: bytes, other: bytes) -> bytes:
        some = list(_parts(data))
        i, j = self.below(len(some)), self.below(len(some))
        some[i], some[j] = some[j], some[i]
        return wire.join(data[:8], some)

    def dropped(self, data: bytes, other: bytes) -> bytes:
        some, at = list(_parts(data)), self.below(len(_parts(data)))
        some[at : at + 1] = [some[at]] * (2 * self.below(2))
        return wire.join(data[:8], some)

    def exchanged(self, data: bytes, other: bytes) -> bytes:
        some, others = list(_parts(data)), _parts(other) or (other,)
        some[self.below(len(some))] = others[self.below(len(others))]
        return wire.join(data[:8], some)

    def within(self, data: bytes, other: bytes) -> bytes:
        some, others = list(_parts(data)), _parts(other)
        at = self.below(len(some))
        some[at] = self.of(some[at], others[at] if at < len(others) else other)
        return wire.join(data[:8], some)

    def resized(self, data: bytes, other: bytes) -> bytes:
        """A part that is the same number in more or fewer bytes, or another number."""
        some, at = list(_parts(data)), self.below(len(_parts(data)))
        part, number = some[at], self.numbers[self.below(len(self.numbers))]
        some[at] = (
            *(b"\0" + part, part[1:], part + b"\0", b"", bytes(len(part)), b"\xff" * len(part)),
            number.to_bytes(wire.width(number), "big"),
        )[self.below(7)]
        return wire.join(data[:8], some)

    # Numbers side by side, of a batch or of a part of a decryption

    def degenerate(self, data: bytes, other: bytes) -> bytes:
        start, width = _row(data)
        at = start + width * self.below((len(data) - start) // width)
        number = self.numbers[self.below(len(self.numbers))]
        if self.below(2):
            was = wire.number(data[at : at + width])
            number = (self.n * number, self.n * self.n - was, was * was)[self.below(3)]
        number %= mpz(256) ** width
        return data[:at] + number.to_bytes(width, "big") + data[at + width :]

    def moved(self, data: bytes, other: bytes) -> bytes:
        start, width = _row(data)
        i, j = (start + width * self.below((len(data) - start) // width) for _ in range(2))
        whence = (data, other)[self.below(2)]
        return data[:i] + whence[j : j + width] + data[i + width :]

    # JSON

    def retold(self, data: bytes, other: bytes) -> bytes:
        start, stop = _tokens(data)[self.below(len(_tokens(data)))]
        i, j = _tokens(data)[self.below(len(_tokens(data)))]
        new = TOKENS[self.below(len(TOKENS))] if self.below(4) else data[i:j]
        return data[:start] + new + data[stop:]

    def respaced(self, data: bytes, other: bytes) -> bytes:
        start, _ = _tokens(data)[self.below(len(_tokens(data)))]
        return data[:start] + (b" ", b"\n\t", b'"a":1,')[self.below(3)] + data[start:]


@lru_cache(2**8)
def _parts(data: bytes) -> tuple[bytes, ...]:
    """The parts of a message; none if it is no message of parts."""
    try:
        return tuple(wire.split(data[:8], data, 0, wire.MOST_PARTS))
    except (MalformedMessage, UnicodeDecodeError):
        return ()


@lru_cache(2**8)
def _counts(data: bytes) -> list[int]:
    """Where the numbers of 4 bytes are: lengths of parts, or those of a batch, or anywhere."""
    places = [8]
    for part in _parts(data):
        places.append(places[-1] + 4 + len(part))
    return [56, 60] if data[:6] == b"SAGGPB" else places[:-1] or list(range(0, len(data), 4))


@lru_cache(2**8)
def _row(data: bytes) -> tuple[int, int]:
    """(start, width) of the numbers side by side in a message; of width 0 if there are none."""
    if data[:6] == b"SAGGPB" and len(data) >= HEADER.size + 512:
        return HEADER.size, 512
    return 0, 256 if len(data) and len(data) % 256 == 0 else 0


@lru_cache(2**8)
def _tokens(data: bytes) -> list[tuple[int, int]]:
    return [match.span() for match in islice(TOKEN.finditer(data), 100)]


@lru_cache(2**8)
def _ways(data: bytes) -> tuple[Callable[[Alteration, bytes, bytes], bytes], ...]:
    """What can be done to this message; what goes deep more often."""
    a = Alteration
    if not data:
        return (a.extended,)
    ways = [a.flipped, a.overwritten, a.truncated, a.extended, a.spliced, a.recounted]
    if _parts(data):
        ways += [a.swapped, a.dropped, a.exchanged, a.resized, *[a.within] * 6]
    if _row(data)[1]:
        ways += [a.flipped, a.overwritten, a.moved, *[a.degenerate] * 3]
    if data[:1] == b"{" and _tokens(data):
        ways += [a.respaced, *[a.retold] * 8]
    return tuple(ways)


# Readers


class Reader(NamedTuple):
    """What is read. read: gives what was read as bytes again; raises what a reader may raise"""

    name: str
    inputs: int
    samples: Sequence[bytes]
    read: Callable[[bytes], bytes]


def trial(reader: Reader, private: PrivateKey) -> dict[str, Any]:
    """How often a reader answered what, and the first of every kind of wrong answer."""
    started, alteration = time.process_time(), Alteration(f"{SEED} {reader.name}", private)
    answers: Counter[str] = Counter()
    failures: dict[str, str] = {}
    for number in range(reader.inputs):
        data, other = (reader.samples[alteration.below(len(reader.samples))] for _ in range(2))
        bent = alteration.of(data, other)
        try:
            again = reader.read(bent)
        except SecureAggError as error:
            answers[type(error).__name__] += 1
            continue
        except Exception as error:
            kind, words = type(error).__name__, str(error)[:100]
        else:
            kind = "accepted" if again == bent else "read wrongly"
            words = f"gives {len(again)} bytes, was given {len(bent)}"
        answers[kind] += 1
        if kind != "accepted" and kind not in failures:
            failures[kind] = (
                f"{reader.name}: {kind}: {words}; seed {SEED}, input {number}, "
                f"{len(bent)} bytes: {bent[:200].hex()}"
            )
    seconds = time.process_time() - started
    return {"answers": dict(answers), "failures": list(failures.values()), "seconds": seconds}


def made(private: PrivateKey) -> list[Batch]:
    """A batch of each party, of fixed bytes."""
    n, n_squared = private.public.n, private.public.n_squared
    batches = []
    for index in range(len(NAMES)):
        generator = np.random.default_rng(index)
        plaintexts = pack(LAYOUT, [generator.uniform(-f.bound, f.bound, f.size) for f in FORM])
        factors = [gmpy2.powmod(n // 3 + 7 * index + at, n, n_squared) for at in range(2)]
        pairs = zip(plaintexts, factors, strict=True)
        ciphertexts = [with_part(factor, plaintext, n, n_squared) for plaintext, factor in pairs]
        batches.append(Batch(LAYOUT, private.public.fingerprint, tuple(ciphertexts), 1))
    return batches


def readers(private: PrivateKey, folder: Path) -> list[Reader]:
    """Everything that reads bytes, true messages for it, and how many inputs it is worth."""
    return [
        *small_readers(),
        *sum_readers(private),
        *mask_readers(),
        *key_readers(private, folder),
    ]


def small_readers() -> list[Reader]:
    cards = [card.to_bytes() for card in ROSTER.cards]
    rosters = [Roster(ROSTER.cards[:size]).to_bytes() for size in (0, 2, 5)]
    layouts = (LAYOUT, Layout((Field(3, 100.0, 0.25),), 3, 3072))

    def parts(data: bytes) -> bytes:
        return wire.join(CARD, wire.split(CARD, data, 2, 6))

    def layout(data: bytes) -> bytes:
        try:
            told = json.loads(data)
        except (ValueError, RecursionError):
            raise MalformedMessage("no JSON, which is not the layout's to notice") from None
        again = json.dumps(Layout.from_dict(told).to_dict(), sort_keys=True)
        return data if again == json.dumps(told, sort_keys=True) else again.encode()

    return [
        Reader("wire.split", 370_000, cards, parts),
        Reader("Card", 20_000, cards, lambda data: Card.from_bytes(data).to_bytes()),
        Reader("Roster", 6_000, rosters, lambda data: Roster.from_bytes(data).to_bytes()),
        Reader("Layout", 20_000, [json.dumps(x.to_dict()).encode() for x in layouts], layout),
    ]


def sum_readers(private: PrivateKey) -> list[Reader]:
    public, batches = private.public, made(private)
    terms = Terms("claims 2031", bytes(range(32)), ROSTER.digest, NAMES, public.fingerprint, LAYOUT)
    pairs = zip(NAMES, batches, strict=True)
    given = [contribute(PEOPLE[name], terms, batch.to_bytes()) for name, batch in pairs]
    small = Terms("q", bytes(32), bytes(32), NAMES[:3], "", Layout((FORM[0],), 3, 3072))
    contributions = [contribution.to_bytes() for contribution in given]
    totals = [batches[0], add(public, batches[:2]), add(public, batches)]

    def signed(data: bytes) -> bytes:
        contribution = Contribution.from_bytes(data)
        batch = received(ROSTER, terms, public, contribution)
        return data if (contribution, batch) in zip(given, batches, strict=True) else b""

    return [
        Reader(
            "Batch",
            40_000,
            [batch.to_bytes() for batch in totals],
            lambda data: Batch.from_bytes(data, public, LAYOUT).to_bytes(),
        ),
        Reader(
            "Terms",
            20_000,
            [terms.to_bytes(), small.to_bytes()],
            lambda data: Terms.from_bytes(data).to_bytes(),
        ),
        Reader(
            "Contribution",
            130_000,
            contributions,
            lambda data: Contribution.from_bytes(data).to_bytes(),
        ),
        Reader("transcript.received", 5_000, contributions, signed),
        Reader(
            "Transcript",
            10_000,
            [Transcript(terms, tuple(some)).to_bytes() for some in (given, given[:3], ())],
            lambda data: Transcript.from_bytes(data).to_bytes(),
        ),
    ]


def mask_readers() -> list[Reader]:
    terms = masks.MaskTerms("claims 2031", bytes(32), ROSTER, 3)
    seats: dict[str, list[Seat]] = {name: [] for name in NAMES}
    shown, sealed, vectors, signed, revealed = {}, {}, {}, {}, {}

    def step(name: str, act: Callable[..., tuple[Seat, Any]], *asked: Any) -> Any:
        seat, said = act(PEOPLE[name], terms, *seats[name][-1:], *asked)
        seats[name].append(seat)
        return said

    for name in NAMES:
        shown[name] = step(name, masks.advertise, wire.digest(KEYS, [name.encode()]))
    for name in NAMES:
        sealed[name] = step(name, masks.share, shown)
    there = NAMES[:4]
    for name in there:
        dealt = {other: sealed[other][name] for other in NAMES if other != name}
        arrays = [np.zeros(field.size) for field in FORM]
        vectors[name] = step(name, masks.mask, dealt, FORM, arrays)
    for name in there:
        signed[name] = step(name, masks.confirm, there)
    for name in there:
        revealed[name] = step(name, masks.reveal, signed)

    def vector(data: bytes) -> bytes:
        return masks.checked_masked(terms, NAMES[0], FORM, data).tobytes()

    def pairs(data: bytes) -> bytes:
        return masks.pairs_out(masks.pairs_in(data))

    return [
        Reader(
            "masks.Keys",
            150_000,
            [keys.to_bytes() for keys in shown.values()],
            lambda data: Keys.from_bytes(data).to_bytes(),
        ),
        Reader("masks.pairs_in", 90_000, list(map(masks.pairs_out, sealed.values())), pairs),
        Reader("masks.checked_masked", 60_000, list(vectors.values()), vector),
        Reader(
            "masks.Revealed",
            40_000,
            [item.to_bytes() for item in revealed.values()],
            lambda data: Revealed.from_bytes(data).to_bytes(),
        ),
        Reader(
            "masks.Seat",
            20_000,
            [seat.to_bytes() for some in seats.values() for seat in some],
            lambda data: Seat.from_bytes(data).to_bytes(),
        ),
    ]


def key_readers(private: PrivateKey, folder: Path) -> list[Reader]:
    split, dealt = shares.deal(private, NAMES[:3])
    other, _ = shares.deal(private, NAMES[3:])
    total = add(private.public, made(private))
    parts = [
        shares.prove_part(share, total.ciphertexts, b"", workers=1) for share in dealt.values()
    ]
    person, share, card = PEOPLE[NAMES[0]], dealt[NAMES[0]], ROSTER.cards[0]
    inner = [wire.join(SHARE, [h.encode(), _exponent(s)]) for h, s in dealt.items()]

    shares.save_share(folder / "share", share, PASSPHRASE)
    keys.save_private(folder / "key", private, PASSPHRASE)
    told = [share.holder, split.to_bytes().hex(), hex(share.exponent)]
    files = [(folder / name).read_bytes() for name in ("share", "key")]
    header, secret = keys.load_secret(folder / "share", shares.FILE_FORMAT, PASSPHRASE)

    def file(data: bytes) -> Path:
        path = folder / "altered"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as new:
            new.write(data)
        return path

    def same(found: KeyShare, data: bytes) -> bytes:
        true = found.exponent == share.exponent and found.holder == share.holder
        return data if true and found.split == split else b""

    def secret_file(data: bytes) -> bytes:
        found = keys.load_secret(file(data), shares.FILE_FORMAT, PASSPHRASE)
        return data if found == (header, secret) else b""

    def opened(data: bytes) -> bytes:
        return same(shares.open_share(person, split, data), data)

    def sealed_anew(data: bytes) -> bytes:
        sealed = card.seal(b"key share " + split.digest, data)
        return same(shares.open_share(person, split, sealed), data)

    def file_sealed_anew(data: bytes) -> bytes:
        told = (part.decode("latin-1") for part in wire.split(SHARE, data, 0, 9))
        public = dict(zip(("holder", "split", "more"), told, strict=False))
        exponent = {"exponent": public.pop("more")} if "more" in public else {}
        (folder / "anew").unlink(missing_ok=True)
        keys.save_secret(folder / "anew", shares.FILE_FORMAT, public, exponent, PASSPHRASE)
        return same(shares.load_share(folder / "anew", PASSPHRASE), data)

    return [
        Reader(
            "Part",
            10_000,
            [part.to_bytes(split) for part in parts],
            lambda data: Part.from_bytes(data, split).to_bytes(split),
        ),
        Reader(
            "SplitKey",
            1_000,
            [split.to_bytes(), other.to_bytes()],
            lambda data: SplitKey.from_bytes(data).to_bytes(),
        ),
        Reader("shares.open_share", 2_000, [shares.seal_share(share, card)], opened),
        Reader("shares.open_share, sealed anew", 1_000, inner, sealed_anew),
        Reader("keys.load_secret", 3_000, files, secret_file),
        Reader(
            "shares.load_share",
            1_000,
            files,
            lambda data: same(shares.load_share(file(data), PASSPHRASE), data),
        ),
        Reader(
            "shares.load_share, sealed anew",
            1_000,
            [wire.join(SHARE, [part.encode() for part in told])],
            file_sealed_anew,
        ),
    ]


def _exponent(share: KeyShare) -> bytes:
    return bytes(share.exponent.to_bytes(256, "big"))


def main() -> None:
    """Read every altered message with little memory, and print what came of it."""
    private = PrivateKey(*(int(number, 16) for number in sys.argv[1:]))
    # The messages that are altered must be the same in every run; none of this is secret.
    fixed = random.Random(SEED)
    secrets.token_bytes = fixed.randbytes  # type: ignore[assignment]
    secrets.randbelow = fixed.randrange  # type: ignore[assignment]
    keys.SCRYPT = {"n": 2, "r": 8, "p": 1}
    with tempfile.TemporaryDirectory() as folder:
        every = readers(private, Path(folder))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            bytes(2 * SPARE_BYTES)
        except MemoryError:
            pass
        else:
            sys.exit("the limit of memory does not hold")
        print(json.dumps({reader.name: trial(reader, private) for reader in every}))


# Tests


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is set as Linux has it")
def test_a_million_altered_messages_are_refused_or_read_right_in_256_mb(private):
    found = in_a_child(__file__, private)
    failures = [failure for result in found.values() for failure in result["failures"]]
    assert not failures, "\n".join(failures)
    answers = {name: Counter(result["answers"]) for name, result in found.items()}
    assert sum(counts.total() for counts in answers.values()) == INPUTS
    for name, counts in answers.items():
        assert counts.total() > counts["accepted"] > 0, name


def test_readers_that_crash_or_guess_are_noticed(private):
    def unguarded(data):
        name, verifying, receiving = wire.split(CARD, data, 0, 9)
        return Card(name.decode(), verifying, receiving).to_bytes()

    def padding(data):
        name, *public = wire.split(CARD, data, 3)
        return Card(wire.text(name), *(key[:32].ljust(32, b"\0") for key in public)).to_bytes()

    cards = [card.to_bytes() for card in ROSTER.cards]
    kinds = {"unguarded": ["UnicodeDecodeError", "ValueError"], "padding": ["read wrongly"]}
    for reader in (unguarded, padding):
        result = trial(Reader(reader.__name__, 2000, cards, reader), private)
        begins = [f"{reader.__name__}: {kind}: " for kind in kinds[reader.__name__]]
        failures = sorted(result["failures"])
        assert [f.startswith(b) for f, b in zip(failures, begins, strict=True)] == [True] * len(
            begins
        )
        assert all(f"seed {SEED}, input " in failure for failure in failures)


@pytest.mark.slow
def test_an_altered_batch_that_is_accepted_opens_to_its_total_or_not_at_all(private):
    total = add(private.public, made(private)[:3])
    honest, data = decrypt(private, total), total.to_bytes()
    alteration = Alteration("accepted", private)
    ways = [alteration.flipped, alteration.overwritten, alteration.degenerate]
    opened = refused = 0
    while opened + refused < 200:
        bent = ways[alteration.below(3)](data, data)
        try:
            batch = Batch.from_bytes(bent, private.public, LAYOUT)
        except SecureAggError:
            continue
        if bent == data:
            continue
        try:
            arrays = decrypt(private, batch)
        except InconsistentSum:
            refused += 1
            continue
        opened += 1  # -c hides what c hides
        assert [a.tobytes() for a in arrays] == [a.tobytes() for a in honest]
    assert refused > opened > 0


def test_whole_ciphertexts_that_were_moved_open_and_only_the_signature_tells(private):
    one, two = made(private)[:2]
    terms = Terms("q", bytes(32), ROSTER.digest, NAMES, private.public.fingerprint, LAYOUT)
    mixed = replace(one, ciphertexts=(one.ciphertexts[0], two.ciphertexts[1]))
    opened, honest = decrypt(private, mixed), decrypt(private, one)
    assert opened[0].tobytes() == honest[0].tobytes()
    assert opened[1].tobytes() != honest[1].tobytes()
    contribution = contribute(PEOPLE[NAMES[0]], terms, one.to_bytes())
    assert received(ROSTER, terms, private.public, contribution) == one
    with pytest.raises(FaultyParty, match="signature"):
        received(ROSTER, terms, private.public, replace(contribution, batch=mixed.to_bytes()))


if __name__ == "__main__":
    main()
