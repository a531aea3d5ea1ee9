"""What the folder of every party holds, whatever its role: its keys, its enrolment, the charter."""

from __future__ import annotations

from pathlib import Path

from federated.deployment import charter as charters
from federated.deployment.charter import Charter
from federated.deployment.enrolment import Enrolment, Role, enrol, load_identity, new_identity
from lab.errors import ConfigurationError
from lab.files import read_json, write_whole
from secure_agg.identity import Identity

IDENTITY, CHARTER, ENROLMENT = "identity.json", "charter.json", "enrolment.json"
#: Where a member keeps what it tells others beside studies: of claims, conditions, scores of one person.
LINK_FOLDER, SCORES_FOLDER = "link", "scores"


def make_folder(folder: Path) -> None:
    """A new folder for its owner alone. Raises :class:`ConfigurationError` if it is in use."""
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"{folder}: is not empty; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def make_party(folder: Path, name: str, role: Role, flower_key: str = "") -> Enrolment:
    """Keys and enrolment of a new party; the enrolment is what it hands over."""
    identity = new_identity(folder / IDENTITY, name)
    enrolment = enrol(identity, role, flower_key)
    text = enrolment.model_dump_json(indent=1).encode() + b"\n"
    write_whole(folder / ENROLMENT, text)
    return enrolment


def identity_of(folder: Path) -> Identity:
    """Raises :class:`ConfigurationError`."""
    if not folder.is_dir():
        raise ConfigurationError(
            f"{folder}: no such folder; make it with lab exchange init or lab node init"
        )
    return load_identity(folder / IDENTITY)


def seed_of(folder: Path) -> bytes:
    """The seed of a party's keys, for the parts that derive more from it."""
    identity_of(folder)
    return bytes.fromhex(read_json(folder / IDENTITY)["seed"])


def charter_of(folder: Path, name: str) -> Charter:
    """The charter in a party's folder, signed by all its members, of whom the party is one."""
    path = folder / CHARTER
    if not path.exists():
        raise ConfigurationError(
            f"{path}: missing; get the charter and its signatures from the coordinator, "
            "and put both here"
        )
    charter = charters.read_signed(path)
    charter.member(name)
    return charter
