"""Encrypt, add and open whole batches.

Paillier's cryptosystem with g = n + 1 (Paillier, EUROCRYPT 1999; Damgård and Jurik, PKC 2001):

    encrypt(m) = (1 + n*m) * b mod n**2          b a random n-th power, see `blinding`
    add        = product mod n**2
    decrypt(c) = L(c**(p-1) mod p**2) * ... by the Chinese remainder theorem (Paillier, section 7)

Whoever adds sees ciphertexts only; whoever decrypts must never be handed a single party's batch,
which is for the caller to ensure.

A number c with a factor in common with n is no ciphertext, and the plaintext it "decrypts" to
can give the key away. So every ciphertext is checked, 0 < c < n**2 and gcd(c, n) = 1, when
it is read, before it is added and before it is decrypted.

The powers with secret exponents take constant time where `modexp` finds OpenSSL; the few steps
after them do not. Decrypt where no stranger measures.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

import gmpy2
import numpy as np
import numpy.typing as npt
from gmpy2 import mpz

from secure_agg.arithmetic import blinding
from secure_agg.arithmetic.modexp import secret_powers
from secure_agg.errors import (
    InconsistentSum,
    InvalidCiphertext,
    LayoutMismatch,
    MalformedBatch,
    TooManyContributions,
    WrongKey,
)
from secure_agg.keys import PrivateKey, PublicKey
from secure_agg.packing import Layout, checked, packed, unpack

MAGIC = b"SAGGPB01"  # the last two digits are the version
HEADER = struct.Struct(">8s32s16sII")  # magic, layout digest, key fingerprint, contributions, count
CHUNK = 64  # ciphertexts that a thread opens in one go


@dataclass(frozen=True)
class Batch:
    """One layout's worth of ciphertexts: a single party's, or a sum of several.

    layout: how the values are packed
    key: fingerprint of the public key
    ciphertexts: `layout.plaintexts` numbers below n**2
    contributions: how many parties' values are added in it, 1 to layout.parties

    Raises LayoutMismatch and TooManyContributions. Whether the ciphertexts are sound is checked
    where the public key is at hand: in `from_bytes`, `add` and `decrypt`.
    """

    layout: Layout
    key: str
    ciphertexts: tuple[mpz, ...]
    contributions: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "ciphertexts", tuple(self.ciphertexts))
        if not all(isinstance(ciphertext, (int, mpz)) for ciphertext in self.ciphertexts):
            raise InvalidCiphertext("a ciphertext must be an integer")
        if not re.fullmatch("[0-9a-f]{32}", self.key):
            raise WrongKey("a batch names its key by 32 hexadecimal digits, PublicKey.fingerprint")
        if len(self.ciphertexts) != self.layout.plaintexts:
            raise LayoutMismatch(
                f"a batch of this layout has {self.layout.plaintexts} ciphertexts, "
                f"got {len(self.ciphertexts)}"
            )
        if not 1 <= self.contributions <= self.layout.parties:
            raise TooManyContributions(
                f"a batch of this layout holds 1 to {self.layout.parties} contributions, "
                f"got {self.contributions}"
            )

    def __repr__(self) -> str:
        return (
            f"Batch({len(self.ciphertexts)} ciphertexts under key {self.key}, "
            f"contributions={self.contributions})"
        )

    def to_bytes(self) -> bytes:
        """This batch on the wire: its size depends on the layout alone."""
        header = HEADER.pack(
            MAGIC,
            bytes.fromhex(self.layout.digest()),
            bytes.fromhex(self.key),
            self.contributions,
            len(self.ciphertexts),
        )
        size = 2 * -(-self.layout.key_bits // 8)
        try:
            return b"".join([header, *(c.to_bytes(size, "big") for c in self.ciphertexts)])
        except OverflowError:
            raise InvalidCiphertext("a ciphertext is negative, or longer than n**2") from None

    @classmethod
    def from_bytes(cls, data: bytes, public: PublicKey, layout: Layout) -> Batch:
        """The batch that `to_bytes` wrote, if it is of this key and this layout.

        Raises MalformedBatch, LayoutMismatch, WrongKey, TooManyContributions, InvalidCiphertext.
        """
        _fits(public, layout)
        size = public.ciphertext_bytes
        length = HEADER.size + layout.plaintexts * size
        if len(data) < HEADER.size or data[:6] != MAGIC[:6]:
            raise MalformedBatch("these bytes are not an encrypted batch; check what was sent")
        magic, digest, fingerprint, contributions, count = HEADER.unpack_from(data)
        if magic != MAGIC:
            raise MalformedBatch(
                "this encrypted batch is of another version; all parties need the same release"
            )
        if digest.hex() != layout.digest():
            raise LayoutMismatch("this batch has a different layout from the one agreed on")
        if fingerprint.hex() != public.fingerprint:
            raise WrongKey(f"this batch is not encrypted under key {public.fingerprint}")
        if len(data) != length or count != layout.plaintexts:
            raise MalformedBatch(f"a batch of this layout has {length} bytes, got {len(data)}")
        view = memoryview(data)[HEADER.size :]
        ciphertexts = tuple(
            mpz.from_bytes(bytes(view[at : at + size]), "big") for at in range(0, len(view), size)
        )
        check_ciphertexts(public, ciphertexts)
        return cls(layout, public.fingerprint, ciphertexts, contributions)


def encrypt(
    public: PublicKey,
    layout: Layout,
    arrays: Sequence[npt.ArrayLike],
    *,
    workers: int = 2,
    series: bool = False,
) -> Batch:
    """One party's values, encrypted.

    arrays: one for each field of the layout, shape (size,)
    workers: processes, this one among them, that may make blinding factors for big batches

    Raises LayoutMismatch and ValueOutOfBounds before anything is encrypted.
    """
    _fits(public, layout)
    values = checked(layout.fields, arrays)
    n, n_squared = public.n, public.n_squared
    with closing(blinding.factors(n, layout.plaintexts, workers, series)) as factors:
        ciphertexts = tuple(
            blinding.with_part(factor, plaintext, n, n_squared)
            for plaintext, factor in zip(packed(layout, values), factors, strict=True)
        )
    return Batch(layout, public.fingerprint, ciphertexts, 1)


def add(public: PublicKey, batches: Iterable[Batch]) -> Batch:
    """The sum of batches: whoever opens it sees the total of what they hold.

    Raises LayoutMismatch, WrongKey, TooManyContributions, InvalidCiphertext.
    """
    batches = list(batches)
    if not batches:
        raise LayoutMismatch("a sum needs at least one batch, got none")
    layout = batches[0].layout
    for index, batch in enumerate(batches):
        if batch.layout != layout:
            raise LayoutMismatch(
                f"batch {index} has a different layout from batch 0; all batches of a sum need the same one"
            )
        _same_key(public, batch)
    contributions = sum(batch.contributions for batch in batches)
    if contributions > layout.parties:
        raise TooManyContributions(
            f"the layout has room for {layout.parties} contributions, got {contributions}; "
            "agree on a layout for more parties"
        )
    for index, batch in enumerate(batches):
        try:
            check_ciphertexts(public, batch.ciphertexts)
        except InvalidCiphertext as error:
            raise InvalidCiphertext(f"batch {index}: {error}") from None
    total = batches[0].ciphertexts
    for batch in batches[1:]:
        total = tuple(
            a * b % public.n_squared for a, b in zip(total, batch.ciphertexts, strict=True)
        )
    return Batch(layout, public.fingerprint, total, contributions)


def decrypt(
    private: PrivateKey, batch: Batch, *, workers: int = 2
) -> list[npt.NDArray[np.float64]]:
    """The values a batch holds, one float64 array of shape (size,) for each field.

    Raises WrongKey, InvalidCiphertext before the key is used; InconsistentSum after.
    """
    _same_key(private.public, batch)
    plaintexts = decrypt_raw(private, batch.ciphertexts, workers=workers)
    return unpack(batch.layout, plaintexts, batch.contributions)


def keeps_layout(private: PrivateKey, batch: Batch) -> bool:
    """Whether a batch holds what its contributions can put into it; of its values nothing is told.

    For the holder of the whole key alone, who may look at a single party's batch and show nobody.
    Raises WrongKey, InvalidCiphertext.
    """
    try:
        decrypt(private, batch)
    except InconsistentSum:
        return False
    return True


def decrypt_raw(private: PrivateKey, ciphertexts: Sequence[mpz], *, workers: int = 2) -> list[mpz]:
    """The plaintexts 0 <= m < n of single ciphertexts, in order. Raises InvalidCiphertext.

    workers: threads; the powers, nearly all of the work, run side by side
    """
    check_ciphertexts(private.public, ciphertexts)
    p, q = private.p, private.q
    p_squared, q_squared = p * p, q * q
    # c**(p-1) = 1 + p * (m * q * (p-1)) mod p**2, and q * (p-1) = -q mod p
    undo_p, undo_q = gmpy2.invert(-q, p), gmpy2.invert(-p, q)
    q_inverse = gmpy2.invert(q, p)

    def opened(chunk: Sequence[mpz]) -> list[mpz]:
        powers_p = secret_powers(chunk, p - 1, p_squared)
        powers_q = secret_powers(chunk, q - 1, q_squared)
        plaintexts = []
        for power_p, power_q in zip(powers_p, powers_q, strict=True):
            m_p = (power_p - 1) // p * undo_p % p
            m_q = (power_q - 1) // q * undo_q % q
            plaintexts.append(m_q + q * ((m_p - m_q) * q_inverse % p))
        return plaintexts

    size = max(1, min(CHUNK, -(-len(ciphertexts) // workers)))
    chunks = (ciphertexts[at : at + size] for at in range(0, len(ciphertexts), size))
    if workers == 1 or len(ciphertexts) == 1:
        return list(chain.from_iterable(map(opened, chunks)))
    with ThreadPoolExecutor(workers) as pool:
        return list(chain.from_iterable(pool.map(opened, chunks)))


def check_ciphertexts(public: PublicKey, ciphertexts: Iterable[mpz]) -> None:
    """Refuse any number that is not 0 < c < n**2 with gcd(c, n) = 1. Raises InvalidCiphertext.

    The gcd is taken once, of the product of all modulo n: it is 1 exactly if each one is.
    """
    n, n_squared = public.n, public.n_squared
    numbers, product = [], mpz(1)
    for index, ciphertext in enumerate(ciphertexts):
        if not 0 < ciphertext < n_squared:
            raise InvalidCiphertext(
                f"ciphertext {index} must be above 0 and below n**2: it was tampered with, or "
                "made under another key. Nothing was added or opened; find out who sent it"
            )
        numbers.append(ciphertext)
        product = product * ciphertext % n
    if gmpy2.gcd(product, n) != 1:
        index = next(i for i, ciphertext in enumerate(numbers) if gmpy2.gcd(ciphertext, n) != 1)
        raise InvalidCiphertext(
            f"ciphertext {index} has a factor in common with n, which no honest encryption has and "
            "which can expose the key. Nothing was added or opened; find out who sent it"
        )


def _fits(public: PublicKey, layout: Layout) -> None:
    if layout.key_bits != public.bits:
        raise LayoutMismatch(f"the layout is for {layout.key_bits} bits, the key has {public.bits}")


def _same_key(public: PublicKey, batch: Batch) -> None:
    _fits(public, batch.layout)
    if batch.key != public.fingerprint:
        raise WrongKey(f"the batch is under key {batch.key}, not {public.fingerprint}")
