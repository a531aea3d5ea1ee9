"""The charter: what all members agreed on, and their signatures under it.

A charter names the members with their public keys, who may open a total, how few parties a sum
may have, and what may be computed. Its SHA-256 goes into every message and every line of every
log; a party with another charter is refused. It is a JSON file; the signatures stand in a file
beside it, each over the hash of exactly this charter, so that a charter changed by one character
has no signature left.

    coordinator  new, with_member, with_key       -> Charter
    member       sign(charter, identity)          -> Signature
    anybody      read_signed(path)                -> Charter, or an error that names who is missing
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from gmpy2 import mpz
from pydantic import AfterValidator, Field, model_validator

from federated.deployment.enrolment import INSURERS, Enrolment, Hex32, Member
from federated.deployment.pairs import Pairs
from federated.link.charter import LinkCharter
from federated.party.statistics import analyses, belongs
from federated.queries.person.terms import ScoreTerms
from lab.errors import ConfigurationError, PeerError
from lab.files import canonical, read_json, write_whole
from lab.records import Strict, parse
from secure_agg.errors import InvalidKey
from secure_agg.identity import Identity, Roster
from secure_agg.keys import PublicKey
from secure_agg.shares import SplitKey
from secure_agg.transcript import FEWEST

DOMAIN = b"insurance-privacy-lab charter 1"
PURPOSE = b"charter"


def _an_analysis(name: str) -> str:
    if name not in analyses():
        raise ValueError(
            f"must be one of {', '.join(analyses())}, or a kind of model of an installed package"
        )
    return name


#: What a party may take part in: a kind of model, questions, profiles of providers.
Analysis = Annotated[str, AfterValidator(_an_analysis)]


class Key(Strict):
    """The Paillier key that contributions are encrypted to, and who opens totals.

    modulus: hexadecimal digits; by: one supervisor (``authority``) or all insurers (``split``);
    split: SHA-256 of the split key's public part, empty for an authority.
    """

    modulus: str = Field(pattern=r"^[1-9a-f][0-9a-f]+$", max_length=4096)
    opens: Literal["authority", "split"]
    by: tuple[str, ...] = Field(min_length=1)
    split: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    @model_validator(mode="after")
    def _key_is_a_key(self) -> Self:
        try:
            _ = self.public
        except InvalidKey as error:
            raise ValueError(f"modulus: {error}") from None
        if (self.opens == "split") != bool(self.split):
            raise ValueError("split is the digest of a split key; leave it out for any other key")
        return self

    @cached_property
    def public(self) -> PublicKey:
        """The key as sums use it."""
        return PublicKey(mpz(self.modulus, 16))


class CharterLimits(Strict):
    """What no run may go below or beyond, whoever asks; a node may be stricter, never looser.

    epsilon, delta: the privacy budget each party may ever spend; 0 where there is none.
    """

    minimum_rows: int = Field(default=10, ge=1)
    key_bits: int = Field(default=3072, ge=2048)
    epsilon: float = Field(default=0.0, ge=0)
    delta: float = Field(default=0.0, ge=0, lt=1)


class Charter(Strict):
    """What the parties agreed on. Members stand in seat order; names and keys occur once.

    contracts: names of data contracts and the version in force; parties_may_leave: whether runs go on
    without a party, although totals with it and without it may show its own sums; pairs: which insurers
    know the same persons, if any do; scores: what sides of pairs may tell each other of one person's;
    link: what payers may tell each other of a claim or a condition.
    """

    format: Literal["insurance-privacy-lab charter 1"] = "insurance-privacy-lab charter 1"
    name: str = Field(min_length=1, max_length=200)
    version: int = Field(default=1, ge=1)
    coordinator: str
    members: tuple[Member, ...]
    key: Key | None = None
    minimum_parties: int = Field(default=FEWEST, ge=FEWEST)
    parties_may_leave: bool = False
    analyses: tuple[Analysis, ...] = Field(min_length=1)
    contracts: dict[str, int] = Field(min_length=1)
    limits: CharterLimits = CharterLimits()
    pairs: Pairs | None = None
    scores: ScoreTerms | None = None
    link: LinkCharter | None = None

    @model_validator(mode="after")
    def _members_fit_together(self) -> Self:
        for name in (self.name, *self.contracts):
            if not name.isprintable():
                raise ValueError(f"{name!r} must be printable: people read it")
        by_name = {member.name: member for member in self.members}
        kinds = {
            "name": [m.name for m in self.members],
            "key": [key for m in self.members for key in (m.verifying, m.receiving)],
            "flower_key": [m.flower_key for m in self.members if m.flower_key],
        }
        for what, values in kinds.items():
            if len(set(values)) != len(values):
                raise ValueError(f"two members have the same {what}")
        if len(set(self.analyses)) != len(self.analyses):
            raise ValueError("an analysis is named twice")
        coordinators = [m.name for m in self.members if m.role == "coordinator"]
        if coordinators != [self.coordinator]:
            raise ValueError(f"needs exactly one coordinator among its members: {self.coordinator}")
        if self.pairs is not None:
            _check_sides(self.pairs, by_name)
        elif self.scores is not None:
            raise ValueError("scores: are told between sides of pairs; agree on these first")
        if self.link is not None:
            _check_payers(self.link, by_name)
        if self.key is not None:
            _check_holders(self.key, by_name)
            if self.key.public.bits < self.limits.key_bits:
                raise ValueError(f"the key must have at least {self.limits.key_bits} bits")
        return self

    @classmethod
    def read(cls, path: Path) -> Charter:
        """The charter of a file, whoever signed it. Raises :class:`ConfigurationError`."""
        return parse(cls, read_json(path), where=str(path))

    @property
    def digest(self) -> str:
        """SHA-256 of the charter's one encoding, 64 hexadecimal digits."""
        content = canonical(self.model_dump(mode="json"))
        preimage = DOMAIN + struct.pack(">Q", len(content)) + content
        return hashlib.sha256(preimage).hexdigest()

    @property
    def parties_line(self) -> str:
        """How many parties are behind a sum, for people."""
        least = f"{self.minimum_parties} or more behind a sum"
        if self.pairs is not None:
            least = f"all sides behind a sum of joined rows, {least.replace('a sum', 'any other')}"
        if self.parties_may_leave:
            return f"{least}; they may leave, and sums of their own may follow"
        return f"{least}, the same behind all sums"

    @property
    def fewest(self) -> int:
        """Insurers that it needs: two where they are a pair, whose shares of a sum tell nothing."""
        return self.minimum_parties if self.pairs is None else 2

    @property
    def roster(self) -> Roster:
        """The insurers' cards in seat order: who is behind a sum of all."""
        return Roster(tuple(m.card for m in self.members if m.role in INSURERS))

    def member(self, name: str) -> Member:
        """Raises :class:`PeerError` for a name that the charter does not hold."""
        for member in self.members:
            if member.name == name:
                return member
        raise PeerError(f"charter {self.name}: there is no member '{name}'")

    def holds(self, contract: str, version: int) -> bool:
        """Whether a contract is in force in this version, by its name or as ``NAME-vN``."""
        return version in (self.contracts.get(n) for n in (contract, f"{contract}-v{version}"))

    def allows(self, statistic: str) -> bool:
        """Whether an analysis that the charter allows asks for this statistic."""
        return belongs(statistic, self.analyses)


def _check_holders(key: Key, members: Mapping[str, Member]) -> None:
    roles = {name: members[name].role if name in members else "no member" for name in key.by}
    if key.opens == "authority" and list(roles.values()) != ["supervisor"]:
        raise ValueError("an authority is one supervisor, who is not the coordinator")
    insurers = {name for name, member in members.items() if member.role in INSURERS}
    if key.opens == "split" and (set(key.by) != insurers or len(key.by) != len(insurers)):
        raise ValueError("a split key is held by every insurer, and by nobody else")


def _check_sides(pairs: Pairs, members: Mapping[str, Member]) -> None:
    insurers = {name for name, member in members.items() if member.role in INSURERS}
    if insurers != set(pairs.keys):
        raise ValueError("pairs: their sides are all insurers of the charter, and nobody else")


def _check_payers(link: LinkCharter, members: Mapping[str, Member]) -> None:
    insurers = {name for name, member in members.items() if member.role in INSURERS}
    named = {*link.caps, *([link.condition.fund] if link.condition else [])}
    for name in sorted(named - insurers):
        raise ValueError(f"link: '{name}' is no insurer of the charter")


def new(
    name: str,
    coordinator: Enrolment,
    *,
    analyses: Iterable[str],
    contracts: Mapping[str, int],
    minimum_parties: int = FEWEST,
    parties_may_leave: bool = False,
    limits: CharterLimits | None = None,
) -> Charter:
    """A charter whose only member is its coordinator. Raises ConfigurationError, PeerError."""
    coordinator.check()
    return _checked(
        {
            "name": name,
            "coordinator": coordinator.member.name,
            "members": [coordinator.member.model_dump()],
            "analyses": list(analyses),
            "contracts": dict(contracts),
            "minimum_parties": minimum_parties,
            "parties_may_leave": parties_may_leave,
            "limits": (limits or CharterLimits()).model_dump(),
        }
    )


def with_member(charter: Charter, enrolment: Enrolment) -> Charter:
    """The next version of a charter, with one more member in the last seat.

    A split key is dropped, for it was dealt to others. Raises ConfigurationError, PeerError.
    """
    enrolment.check()
    members = [*charter.members, enrolment.member]
    if charter.pairs is not None:
        raise ConfigurationError(
            f"charter {charter.name}: its pairs are of the members that it has; add members first"
        )
    split = charter.key is not None and charter.key.opens == "split"
    change: dict[str, object] = {"members": [member.model_dump() for member in members]}
    return _next(charter, change | ({"key": None} if split else {}))


def with_key(charter: Charter, public: PublicKey, opened_by: str | SplitKey) -> Charter:
    """The next version of a charter, with the key: a supervisor's, or split among the insurers."""
    split = isinstance(opened_by, SplitKey)
    key = {
        "modulus": public.n.digits(16),
        "opens": "split" if split else "authority",
        "by": list(opened_by.holders) if isinstance(opened_by, SplitKey) else [opened_by],
        "split": opened_by.digest.hex() if isinstance(opened_by, SplitKey) else "",
    }
    return _next(charter, {"key": key})


def with_terms(charter: Charter, **terms: Strict) -> Charter:
    """The next version of a charter, with its pairs, its scores or its link. Raises ConfigurationError."""
    return _next(charter, {name: each.model_dump() for name, each in terms.items()})


def _next(charter: Charter, change: dict[str, object]) -> Charter:
    return _checked(charter.model_dump() | {"version": charter.version + 1} | change)


def _checked(values: dict[str, object]) -> Charter:
    return parse(Charter, values, where=f"charter {values['name']}")


def same(ours: str, theirs: str, whose: str) -> None:
    """Raises :class:`PeerError` with both hashes unless a peer uses our charter."""
    if ours != theirs:
        raise PeerError(
            f"{whose} uses charter {theirs or '(none)'}, this party uses {ours or '(none)'}; "
            "compare with: lab charter show"
        )


# Signatures.


class Signature(Strict):
    """One member's consent: Ed25519 over the digest of the charter it read, which stands here too."""

    charter: str = Hex32
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


class Signatures(Strict):
    """The file beside a charter: signatures by name of the member."""

    format: Literal["insurance-privacy-lab signatures 1"] = "insurance-privacy-lab signatures 1"
    by: dict[str, Signature]


class Consent(NamedTuple):
    """A charter and what is missing: the reason for every member who has not agreed to it."""

    charter: Charter
    missing: dict[str, str]


def sign(charter: Charter, identity: Identity) -> Signature:
    """A member's signature. Raises :class:`PeerError` if the charter does not carry its keys."""
    if charter.member(identity.card.name).card != identity.card:
        raise PeerError(
            f"charter {charter.name}: holds other keys for {identity.card.name} than its own; "
            "do not sign, and ask the coordinator which enrolment it added"
        )
    signature = identity.sign(PURPOSE, bytes.fromhex(charter.digest))
    return Signature(charter=charter.digest, signature=signature.hex())


def missing(charter: Charter, signatures: Mapping[str, Signature]) -> dict[str, str]:
    """Members who have not signed exactly this charter, with the reason."""
    reasons = {}
    for member in charter.members:
        signature = signatures.get(member.name)
        if signature is None:
            reasons[member.name] = "has not signed"
        elif not member.card.signed(
            PURPOSE, bytes.fromhex(signature.charter), bytes.fromhex(signature.signature)
        ):
            reasons[member.name] = "the signature is not by its key"
        elif signature.charter != charter.digest:
            reasons[member.name] = (
                f"signed {signature.charter}, and this charter is {charter.digest}"
            )
    return reasons


def signatures_beside(path: Path) -> Path:
    """Where a charter's signatures stand: charter.json has charter.signatures.json."""
    return path.with_name(f"{path.stem}.signatures.json")


def read_signatures(path: Path) -> dict[str, Signature]:
    """The signatures of a file, unchecked; none if there is no such file."""
    if not path.exists():
        return {}
    return parse(Signatures, read_json(path), where=str(path)).by


def read(path: Path) -> Consent:
    """A charter with its signatures checked. Raises :class:`ConfigurationError` for the files."""
    charter = Charter.read(path)
    return Consent(charter, missing(charter, read_signatures(signatures_beside(path))))


def read_signed(path: Path) -> Charter:
    """The charter that all its members signed.

    Raises :class:`ConfigurationError` that names whoever did not, and both hashes where somebody
    signed another one.
    """
    charter, absent = read(path)
    if absent:
        lines = "".join(f"\n  {name}: {reason}" for name, reason in absent.items())
        raise ConfigurationError(
            f"{path}: nobody may use a charter that some members did not sign{lines}"
        )
    insurers, least = len(charter.roster.cards), charter.fewest
    if insurers < least:
        raise ConfigurationError(f"{path}: needs {least} insurers or more, has {insurers}")
    return charter


def write(path: Path, charter: Charter, signatures: Mapping[str, Signature]) -> None:
    """A charter, and its signatures beside it; each file is replaced whole."""
    beside = Signatures(by=dict(sorted(signatures.items())))
    for target, model in ((signatures_beside(path), beside), (path, charter)):
        text = json.dumps(model.model_dump(mode="json"), indent=1, ensure_ascii=False)
        write_whole(target, text.encode() + b"\n")
