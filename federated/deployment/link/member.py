"""A member's folder as a link needs it: identity, what all signed, its own limits, its line.

The same folder, keys, certificate and charter as for studies. What a link keeps lies in `link/`
below it, with a log of its own, because another process writes that of the node.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from federated.deployment import certificates
from federated.deployment.charter import Charter
from federated.deployment.coordinator import exchange
from federated.deployment.enrolment import INSURERS
from federated.deployment.folders import LINK_FOLDER, charter_of, identity_of, seed_of
from federated.deployment.link.scores import score_service
from federated.deployment.node.rules.settings import (
    AUTHORITY,
    CERTIFICATE,
    KEY,
    NodeSettings,
    admission_of,
)
from federated.link.charter import ConditionTerms, LinkCharter
from federated.link.letters import LetterBox
from federated.link.own_terms import OwnLink
from federated.link.party_log import party_log
from federated.link.ring import COORDINATOR
from federated.link.services.condition_service import FundService, InsurerService
from federated.link.services.desk_folder import DeskTerms, read_desk
from federated.link.services.desk_service import DeskService
from federated.link.services.fund_record import fund_record, read_conditions, read_person_keys
from federated.link.services.night import agreed_terms
from federated.link.services.process import Handler, LinkMember, own_box
from federated.transport.relay_line import RelayLine
from lab.errors import ConfigurationError
from secure_agg.identity import Card, Identity


@dataclass(frozen=True)
class LinkFolder:
    """What a member's folder holds for a link. home: where the link keeps its own; settings: a node's."""

    folder: Path
    identity: Identity = field(repr=False)
    charter: Charter
    own: OwnLink
    settings: NodeSettings | None = None

    @property
    def home(self) -> Path:
        return self.folder / LINK_FOLDER

    @property
    def name(self) -> str:
        """Its name among the roles of a link."""
        return self.identity.card.name

    @property
    def terms(self) -> LinkCharter:
        """What all members signed of a link. Raises ConfigurationError."""
        if self.charter.link is None:
            raise ConfigurationError(
                f"charter {self.charter.name}: has no link; agree on one with lab charter link"
            )
        return self.charter.link

    @property
    def cards(self) -> dict[str, Card]:
        """The cards of the payers, in the order of the ring, and of the coordinator by its role."""
        payers = {m.name: m.card for m in self.charter.members if m.role in INSURERS}
        one = self.charter.member(self.charter.coordinator).card
        return {**payers, COORDINATOR: Card(COORDINATOR, one.verifying, one.receiving)}

    @property
    def agreed(self) -> DeskTerms:
        """What all roles of a night agree on."""
        payers = tuple(name for name in self.cards if name != COORDINATOR)
        return agreed_terms(self.terms, payers, self.cards, self.charter.digest)

    def condition_terms(self) -> ConditionTerms | None:
        """What may be asked about conditions, as this member keeps it."""
        terms = self.terms.condition
        return None if terms is None else self.own.tightened(terms)

    @contextmanager
    def line(self) -> Iterator[RelayLine]:
        """Its line to the exchange. Raises ConfigurationError."""
        with ExitStack() as stack:
            if self.name == COORDINATOR:
                place = stack.enter_context(exchange.short(self.folder))
                headers = {"lab-secret": exchange.secret_of(self.folder)}
                line = RelayLine.inside(f"{place}/{exchange.LOCAL_SOCKET}", headers)
            else:
                admission = admission_of(self.folder, self.name)
                places = (self.folder / name for name in (AUTHORITY, CERTIFICATE, KEY))
                line = RelayLine.over_tls(admission.address, certificates.client_side(*places))
            stack.callback(line.close)
            yield line

    @contextmanager
    def member(self) -> Iterator[LinkMember]:
        """The member with its line and its log, which no other process writes meanwhile."""
        digest, party = self.charter.digest, self.name
        if party == COORDINATOR:
            party = self.charter.coordinator
        with self.line() as line, party_log(self.identity, self.home, digest, party) as log:
            yield LinkMember(self.identity, self.cards, line, log, digest)


def link_folder(folder: Path) -> LinkFolder:
    """A payer's folder, or an exchange's. Raises ConfigurationError."""
    if (folder / exchange.SETTINGS).exists():
        charter = charter_of(folder, identity_of(folder).card.name)
        return LinkFolder(folder, Identity(COORDINATOR, seed_of(folder)), charter, OwnLink())
    identity, settings = identity_of(folder), NodeSettings.read(folder)
    if settings.role not in INSURERS:
        raise ConfigurationError(f"{folder}: is a {settings.role}'s; payers and the exchange link")
    charter = charter_of(folder, identity.card.name)
    return LinkFolder(folder, identity, charter, settings.link or OwnLink(), settings)


def services(folder: LinkFolder, member: LinkMember) -> tuple[dict[str, Handler], list[str]]:
    """(what a member's process answers, what it can't, in words). Raises ConfigurationError."""
    own, charter = own_box(folder.identity), folder.charter
    handlers, gaps = dict[str, Handler](), list[str]()
    if charter.link is not None:
        handlers, gaps = _of_link(folder, member, own)
    if charter.scores is not None and folder.settings is not None:
        handlers |= score_service(folder.folder, folder.settings, charter, member).handlers(own)
    if not handlers:
        raise ConfigurationError(
            "; ".join(gaps)
            or f"charter {charter.name}: has neither a link nor scores; agree on them with lab charter link, "
            "or lab charter scores"
        )
    return handlers, gaps


def _of_link(
    folder: LinkFolder, member: LinkMember, own: LetterBox
) -> tuple[dict[str, Handler], list[str]]:
    """What it answers of claims and conditions, and what it can't."""
    handlers, gaps = dict[str, Handler](), list[str]()
    try:
        desk = DeskService(read_desk(folder.home), member, folder.own.asks(folder.terms))
        handlers |= desk.handlers(own)
    except ConfigurationError as error:
        gaps.append(str(error))
    terms = folder.condition_terms()
    if terms is not None and folder.name == terms.fund:
        handlers |= _fund(folder, member, terms).handlers()
    elif terms is not None and folder.name != COORDINATOR:
        handlers |= InsurerService(folder.home, member, terms).handlers(own)
    return handlers, gaps


def _fund(folder: LinkFolder, member: LinkMember, terms: ConditionTerms) -> FundService:
    own, spelling = folder.own, folder.terms.spelling.get("person", "normal")
    if own.conditions is None:
        raise ConfigurationError(
            f"{folder.folder}/node.toml: link.conditions is missing: the table of person, group, first "
            "that this fund answers from"
        )
    conditions = read_conditions(folder.folder / own.conditions, spelling)
    keys = read_person_keys(folder.folder / own.person_keys, spelling) if own.person_keys else {}
    record = fund_record(folder.home, conditions, terms)
    return FundService(folder.home, member, terms, record, keys, own.approval == "always")
