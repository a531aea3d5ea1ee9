"""What each role keeps between nights so that single claims can be asked about: a folder of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from federated.link.charter import LinkCharter
from federated.link.desk import SHORT, NameList
from federated.link.ring import COORDINATOR, RingTerms
from lab.errors import ConfigurationError
from lab.files import canonical, read_json, write_whole
from lab.records import Strict, parse
from secure_agg.errors import InvalidIdentity, MalformedMessage
from secure_agg.identity import Card

Hex32 = Field(pattern=r"^[0-9a-f]{64}$")


class DeskTerms(Strict):
    """What all roles of a desk share: `desk.json`.

    session: names the night; cards: names and public keys, hexadecimal; signed: digest of the charter
    of all members that this is of, empty for a comparison in one process
    """

    format: Literal["insurance-privacy-lab link desk 1"] = "insurance-privacy-lab link desk 1"
    charter: LinkCharter
    payers: tuple[str, ...]
    session: str = Hex32
    cards: dict[str, str]
    signed: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    @property
    def terms(self) -> RingTerms:
        charter = self.charter
        caps = tuple(map(charter.cap_of, self.payers))
        session = bytes.fromhex(self.session)
        return RingTerms(self.payers, len(charter.batches), caps, charter.tells, session)

    def roster(self) -> dict[str, Card]:
        """The cards of all roles. Raises ConfigurationError."""
        try:
            cards = [Card.from_bytes(bytes.fromhex(card)) for card in self.cards.values()]
        except (ValueError, MalformedMessage, InvalidIdentity):
            raise ConfigurationError("desk.json: a card is damaged") from None
        roster = {card.name: card for card in cards}
        if set(roster) != {*self.payers, COORDINATOR}:
            raise ConfigurationError("desk.json: needs a card for each role")
        return roster


class DeskSecrets(Strict):
    """What a role shows nobody: `secrets.json`, mode 0600. seed: of the night's comparison."""

    seed: str = Hex32


@dataclass(frozen=True)
class DeskFolder:
    """A role's folder, read. names: a payer's list; None for the coordinator."""

    path: Path
    shared: DeskTerms
    secrets: DeskSecrets
    names: NameList | None

    @property
    def seed(self) -> bytes:
        return bytes.fromhex(self.secrets.seed)


def write_desk(path: Path, shared: DeskTerms, seed: bytes, names: NameList | None) -> None:
    """A role's folder for the next day; what the last night left there is replaced."""
    path.mkdir(parents=True, exist_ok=True)
    if names is not None:
        for name, values in (("names", names.names), ("owners", names.owners)):
            write_whole(path / f"{name}.bin", values.tobytes(), 0o600)
    own = DeskSecrets(seed=seed.hex())
    write_whole(path / "secrets.json", canonical(own.model_dump(mode="json")), 0o600)
    write_whole(path / "desk.json", canonical(shared.model_dump(mode="json")))


def read_desk(path: Path) -> DeskFolder:
    """A folder that `write_desk` wrote. Raises ConfigurationError."""
    if not (path / "secrets.json").is_file():
        raise ConfigurationError(
            f"{path}: there was no night yet, so no claim can be asked about; lab link night"
        )
    shared = parse(DeskTerms, read_json(path / "desk.json"), where=str(path / "desk.json"))
    own = parse(DeskSecrets, read_json(path / "secrets.json"), where=str(path / "secrets.json"))
    if not (path / "names.bin").is_file():
        return DeskFolder(path, shared, own, None)
    names = np.fromfile(path / "names.bin", dtype=f"S{SHORT}")
    owners = np.fromfile(path / "owners.bin", dtype=np.uint16)
    if len(names) != len(owners) or not len(names):
        raise ConfigurationError(f"{path}: the list of names is damaged; make it anew tonight")
    return DeskFolder(path, shared, own, NameList(names, owners))
