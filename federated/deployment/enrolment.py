"""A member's identity, which stays in a file of its own, and the enrolment it hands over.

The identity file holds the seed of the member's signing and receiving keys and never leaves the
member. The enrolment holds public keys alone, with a signature that only the seed's holder can
make; that it was this insurer who made it, and nobody on the way, is checked by people: the
coordinator reads the fingerprint back over a channel it trusts.
"""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from lab.errors import ConfigurationError, PeerError
from lab.files import canonical, read_json, write_whole
from lab.records import Strict, parse
from secure_agg.errors import InvalidIdentity
from secure_agg.identity import SEED_BYTES, Card, Identity, check_name

Role = Literal["public", "commercial", "supervisor", "coordinator"]
#: Roles that hold rows and contribute to sums.
INSURERS: tuple[Role, ...] = ("public", "commercial")
IDENTITY_FORMAT = "insurance-privacy-lab identity 1"
PURPOSE = b"enrolment"
Hex32 = Field(pattern=r"^[0-9a-f]{64}$")
#: Host and port that nodes call.
ADDRESS = r"^[^:/\s]+:\d{1,5}$|^\[[0-9a-fA-F:]+\]:\d{1,5}$"


class Member(Strict):
    """What all parties know of one of them.

    verifying, receiving: Ed25519 and X25519 public keys, 64 hexadecimal digits each;
    flower_key: the key its node authenticates with, one OpenSSH line of a NIST curve, empty where
    the member runs no node.
    """

    name: str
    role: Role
    verifying: str = Hex32
    receiving: str = Hex32
    flower_key: str = ""

    @model_validator(mode="after")
    def _keys_are_keys(self) -> Self:
        if unicodedata.normalize("NFC", self.name) != self.name:
            raise ValueError("a name must be in Unicode's composed form (NFC)")
        try:
            check_name(self.name)
            _ = self.card
        except InvalidIdentity as error:
            raise ValueError(str(error)) from None
        if self.flower_key and self.flower_key != openssh(self.flower_key):
            raise ValueError("flower_key must be one line: kind and key, without a comment")
        if not self.flower_key and self.role != "coordinator":
            raise ValueError(f"a {self.role} member runs a node, so it needs a flower_key")
        return self

    @property
    def card(self) -> Card:
        """The member's name and keys, as protected sums use them."""
        return Card(self.name, bytes.fromhex(self.verifying), bytes.fromhex(self.receiving))

    @property
    def fingerprint(self) -> str:
        """What two people read to each other: SHA-256 of name, role and keys, in 8 groups of 4."""
        digest = hashlib.sha256(canonical(self.model_dump(mode="json"))).hexdigest()
        return " ".join(digest[i : i + 4] for i in range(0, 32, 4))


class Enrolment(Strict):
    """A member and the proof that whoever wrote this holds the member's signing key."""

    format: Literal["insurance-privacy-lab enrolment 1"] = "insurance-privacy-lab enrolment 1"
    member: Member
    proof: str = Field(pattern=r"^[0-9a-f]{128}$")

    @classmethod
    def read(cls, path: Path) -> Enrolment:
        """The enrolment of a file, its proof checked. Raises ConfigurationError and PeerError."""
        enrolment = parse(cls, read_json(path), where=str(path))
        enrolment.check()
        return enrolment

    def check(self) -> None:
        """Raises :class:`PeerError` unless the proof is by the key that is enrolled."""
        message = canonical(self.member.model_dump(mode="json"))
        if not self.member.card.signed(PURPOSE, message, bytes.fromhex(self.proof)):
            raise PeerError(
                f"enrolment of {self.member.name}: the proof is not by its key; the file was "
                "altered on the way, ask for it again"
            )


def enrol(identity: Identity, role: Role, flower_key: str = "") -> Enrolment:
    """The enrolment a member hands to the coordinator.

    flower_key: an OpenSSH public key line; a comment in it is left out.
    """
    card = identity.card
    values = {
        "name": card.name,
        "role": role,
        "verifying": card.verifying.hex(),
        "receiving": card.receiving.hex(),
        "flower_key": openssh(flower_key) if flower_key else "",
    }
    member = parse(Member, values, where=f"enrolment of {card.name}")
    proof = identity.sign(PURPOSE, canonical(member.model_dump(mode="json")))
    return Enrolment(member=member, proof=proof.hex())


def openssh(line: str) -> str:
    """An OpenSSH public key without its comment. Raises ValueError unless it is of a NIST curve."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        key = load_ssh_public_key(line.encode())
    except (
        ValueError,
        UnsupportedAlgorithm,
        NotImplementedError,
    ):  # the last of a compressed point
        raise ValueError("flower_key is no OpenSSH public key") from None
    if not isinstance(key, EllipticCurvePublicKey):
        raise ValueError("flower_key must be of a NIST curve, as ecdsa-sha2-nistp384")
    return " ".join(line.split()[:2])


def new_identity(path: Path, name: str) -> Identity:
    """A fresh identity, kept in a new file of mode 0600 that appears whole or not at all.

    Raises :class:`ConfigurationError` if the file exists: a lost identity can't be made again.
    """
    if path.exists():
        raise ConfigurationError(f"{path}: exists; an identity is never replaced, move it away")
    seed = secrets.token_bytes(SEED_BYTES)
    identity = Identity(name, seed)
    content = {"format": IDENTITY_FORMAT, "name": name, "seed": seed.hex()}
    write_whole(path, canonical(content) + b"\n", 0o600)
    return identity


def load_identity(path: Path) -> Identity:
    """The identity that `new_identity` kept. Raises ConfigurationError; its text holds no secret."""
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigurationError(
            f"{path}: has mode {mode:04o}, so others can use it; it must be 0600. Consider the "
            "identity known to whoever could read it"
        )
    content = read_json(path)
    try:
        if content["format"] != IDENTITY_FORMAT:
            raise ValueError
        return Identity(str(content["name"]), bytes.fromhex(content["seed"]))
    except (KeyError, ValueError, TypeError, InvalidIdentity):
        raise ConfigurationError(f"{path}: is no identity file, or is damaged") from None


ADMISSION, CERTIFICATE_REQUEST = "admission.json", "node.csr"


class Admission(Strict):
    """What a node gets back for its enrolment: where to call, whom to trust, its certificate."""

    format: Literal["insurance-privacy-lab admission 1"] = "insurance-privacy-lab admission 1"
    member: Member
    address: str = Field(pattern=ADDRESS)
    authority: str
    certificate: str

    @classmethod
    def read(cls, path: Path) -> Self:
        return parse(cls, read_json(path), where=str(path))
