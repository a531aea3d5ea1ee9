"""Paillier keys: making them, checking them, keeping them in a file.

A public key is an RSA modulus n = p * q, with g = n + 1 as in phe. The primes are those that
short-exponent blinding asks for (Damgård, Jurik and Nielsen, "A generalization of Paillier's
public-key system with applications to electronic voting", Int. J. Inf. Secur. 9, 2010):
p = q = 3 mod 4, so that -1 is a non-square of Jacobi symbol 1, and gcd(p-1, q-1) = 2.
`generate` also keeps small odd primes out of p-1 and q-1, so that a random square generates
nearly all of the squares.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import gmpy2
from gmpy2 import mpz

from secure_agg.errors import InvalidKey, KeyFileRefused

if TYPE_CHECKING:
    import phe

SMALLEST_BITS = 2048
LARGEST_BITS = 16384  # beyond, checking a stranger's key would keep a machine busy
FILE_FORMAT = "secure_agg.private_key/1"
SCRYPT = {"n": 2**16, "r": 8, "p": 1}  # 64 MiB and about a quarter of a second
SCRYPT_LARGEST = {"n": 2**17, "r": 8, "p": 4}  # what a file may ask of us
LARGEST_FILE_BYTES = 2**20


@dataclass(frozen=True)
class PublicKey:
    """The modulus under which everybody encrypts.

    Raises InvalidKey below 2048 or above 16384 bits, for an even n, and for a prime n.
    """

    n: mpz

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, (int, mpz)):
            raise InvalidKey(f"n must be an integer, got {type(self.n).__name__}")
        object.__setattr__(self, "n", mpz(self.n))
        if not SMALLEST_BITS <= self.bits <= LARGEST_BITS or self.n < 0:
            raise InvalidKey(
                f"n must be positive, of {SMALLEST_BITS} to {LARGEST_BITS} bits, got {self.bits} bits"
            )
        if gmpy2.is_even(self.n) or gmpy2.is_prime(self.n):
            raise InvalidKey("n must be the product of two odd primes; it is even or prime")

    def __repr__(self) -> str:
        return f"PublicKey({self.bits} bits, {self.fingerprint})"

    @property
    def bits(self) -> int:
        """Bits of n."""
        return int(self.n.bit_length())

    @cached_property
    def n_squared(self) -> mpz:
        """The modulus of the ciphertexts."""
        return self.n * self.n

    @property
    def ciphertext_bytes(self) -> int:
        """Bytes of one ciphertext on the wire."""
        return 2 * -(-self.bits // 8)

    @cached_property
    def fingerprint(self) -> str:
        """First 128 bits of SHA-256 of n (big endian, shortest form), as 32 hexadecimal digits."""
        return hashlib.sha256(self.n.to_bytes(-(-self.bits // 8), "big")).hexdigest()[:32]

    def to_phe(self) -> phe.PaillierPublicKey:
        """This key as phe has it."""
        import phe

        return phe.PaillierPublicKey(int(self.n))

    @classmethod
    def from_phe(cls, key: phe.PaillierPublicKey) -> PublicKey:
        """The key behind one of phe's. Raises InvalidKey."""
        return cls(mpz(key.n))


class PrivateKey:
    """Two primes, and what decryption derives from them; never shown and never pickled.

    p, q: distinct primes of one size, both 3 mod 4
    public: the PublicKey

    Raises InvalidKey, naming the property that fails and never the number.
    """

    __slots__ = ("p", "public", "q")

    p: mpz
    q: mpz
    public: PublicKey

    def __init__(self, p: int | mpz, q: int | mpz) -> None:
        p, q = mpz(p), mpz(q)
        faults = _faults(p, q)
        if faults:
            raise InvalidKey(f"these primes do not make a safe key: {'; '.join(faults)}")
        object.__setattr__(self, "p", p)
        object.__setattr__(self, "q", q)
        object.__setattr__(self, "public", PublicKey(p * q))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a PrivateKey can't be changed")

    def __repr__(self) -> str:
        return f"PrivateKey(of {self.public!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PrivateKey) and self.public == other.public

    def __hash__(self) -> int:
        return hash(self.public)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a PrivateKey can't be copied or pickled; use save_private")

    def to_phe(self) -> phe.PaillierPrivateKey:
        """This key as phe has it, with none of our guards."""
        import phe

        return phe.PaillierPrivateKey(self.public.to_phe(), int(self.p), int(self.q))


def _faults(p: mpz, q: mpz) -> list[str]:
    """Why p and q do not make a key, without any of their digits; empty if they do."""
    bits = max(p.bit_length(), q.bit_length())
    rules = {
        f"n must have at least {SMALLEST_BITS} bits": (p * q).bit_length() >= SMALLEST_BITS,
        "p and q must have the same number of bits": p.bit_length() == q.bit_length(),
        "p and q must not be close to each other": abs(p - q) >> max(bits - 100, 0) != 0,
        "p and q must be positive and 3 mod 4": p > 0 and q > 0 and p % 4 == q % 4 == 3,
        "n and (p-1)(q-1) must have no common factor": gmpy2.gcd(p * q, (p - 1) * (q - 1)) == 1,
        "2 must be the only common factor of p-1 and q-1": gmpy2.gcd(p - 1, q - 1) == 2,
    }
    faults = [rule for rule, holds in rules.items() if not holds]
    if not faults and not (gmpy2.is_prime(p, 40) and gmpy2.is_prime(q, 40)):
        faults.append("p and q must be prime")
    return faults


def generate(bits: int = 3072) -> PrivateKey:
    """A fresh key of exactly `bits` bits (even, at least 2048), from the system's randomness.

    Takes one second or a few. Raises InvalidKey.
    """
    if type(bits) is not int or bits < SMALLEST_BITS or bits % 2:
        raise InvalidKey(f"bits must be even and at least {SMALLEST_BITS}, got {bits!r}")
    sieves = [gmpy2.primorial(bound) // 2 for bound in (400, 2**16)]
    while True:
        p, q = _prime(bits // 2, sieves), _prime(bits // 2, sieves)
        if not _faults(p, q):
            return PrivateKey(p, q)


def _prime(bits: int, sieves: list[mpz]) -> mpz:
    """A random prime p = 3 mod 4 with its two top bits set and no small odd prime in p - 1."""
    while True:
        p = mpz(secrets.randbits(bits)) | (mpz(3) << (bits - 2)) | 3
        pair = p * (p - 1)
        if all(gmpy2.gcd(sieve % pair, pair) == 1 for sieve in sieves) and gmpy2.is_prime(p, 40):
            return p


def save_private(path: str | os.PathLike[str], key: PrivateKey, passphrase: str) -> None:
    """Write the key to a new file, as `save_secret` does. Raises KeyFileRefused."""
    header = {"fingerprint": key.public.fingerprint}
    save_secret(path, FILE_FORMAT, header, {"p": hex(key.p), "q": hex(key.q)}, passphrase)


def load_private(path: str | os.PathLike[str], passphrase: str) -> PrivateKey:
    """The key that `save_private` wrote. Raises what `load_secret` raises."""
    _, primes = load_secret(path, FILE_FORMAT, passphrase)
    try:
        p, q = (int(primes[name], 16) for name in ("p", "q"))
    except (KeyError, ValueError, TypeError):
        raise KeyFileRefused(f"{path} holds no private key") from None
    return PrivateKey(p, q)


def save_secret(
    path: str | os.PathLike[str],
    kind: str,
    public: dict[str, str],
    secret: dict[str, str],
    passphrase: str,
) -> None:
    """Write a secret to a new file, mode 0600, encrypted under the passphrase.

    kind: what the file is and its version; public: what may be read without the passphrase

    The file appears whole or not at all, and an existing one is never replaced. JSON; scrypt
    (RFC 7914) derives a key for AES-256-GCM, and everything beside the ciphertext is
    authenticated with it. Raises KeyFileRefused.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    target = Path(path)
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    header = {
        "format": kind,
        **public,
        "scrypt": {**SCRYPT, "salt": _text(salt)},
        "aes-256-gcm": {"nonce": _text(nonce)},
    }
    file_key = _file_key(passphrase, salt, SCRYPT)
    plain = json.dumps(secret).encode()
    ciphertext = AESGCM(file_key).encrypt(nonce, plain, _canonical(header))
    content = json.dumps({**header, "sealed": _text(ciphertext)}, indent=1) + "\n"
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, target)  # unlike a rename, this fails if the target exists
    except FileExistsError:
        raise KeyFileRefused(f"{target} exists; move it away before a new one is written") from None
    finally:
        temporary.unlink(missing_ok=True)


def load_secret(
    path: str | os.PathLike[str], kind: str, passphrase: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """(public header, secret) of a file that `save_secret` wrote.

    Raises KeyFileRefused if anybody but the owner can read or write the file, if it is not of
    this kind, or if passphrase and content do not belong together; OSError if it can't be read.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    with Path(path).open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        if mode & 0o077:
            raise KeyFileRefused(
                f"{path} has mode {mode:04o}, so others can use it; it must be 0600. "
                "Run chmod 600 on it, and consider the key known to whoever could read it"
            )
        content = file.read(LARGEST_FILE_BYTES + 1)
    try:
        header = json.loads(content)
        ciphertext = _bytes(header.pop("sealed"))
        if header["format"] != kind or len(content) > LARGEST_FILE_BYTES:
            raise ValueError
        cost = {name: header["scrypt"][name] for name in SCRYPT}
        if any(type(v) is not int or not 1 <= v <= SCRYPT_LARGEST[k] for k, v in cost.items()):
            raise ValueError
        salt, nonce = _bytes(header["scrypt"]["salt"]), _bytes(header["aes-256-gcm"]["nonce"])
        file_key = _file_key(passphrase, salt, cost)
        secret = AESGCM(file_key).decrypt(nonce, ciphertext, _canonical(header))
    except InvalidTag:
        raise KeyFileRefused(f"{path}: wrong passphrase, or the file was altered") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError):
        raise KeyFileRefused(f"{path} is not a {kind} file, or is damaged") from None
    return header, json.loads(secret)


def _file_key(passphrase: str, salt: bytes, cost: dict[str, int]) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    if not passphrase:
        raise KeyFileRefused("a private key file needs a non-empty passphrase")
    return Scrypt(salt=salt, length=32, **cost).derive(passphrase.encode())


def _canonical(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
