"""Five members of a charter, with their identities and files, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from federated.deployment import charter as charters
from federated.deployment.charter import Charter, CharterLimits
from federated.deployment.enrolment import Enrolment, Role, enrol, new_identity
from secure_agg.identity import Identity
from secure_agg.keys import PublicKey

ROLES: Mapping[str, Role] = {
    "exchange": "coordinator",
    "city fund": "public",
    "ping-an": "commercial",
    "太保": "commercial",
    "supervisor": "supervisor",
}


@dataclass
class Members:
    """What each member has, by its name."""

    identities: dict[str, Identity]
    enrolments: dict[str, Enrolment]
    charter: Charter

    def sign(self, path: Path, charter: Charter | None = None) -> Charter:
        """Write a charter that all of them signed."""
        agreed = charter or self.charter
        signatures = {name: charters.sign(agreed, i) for name, i in self.identities.items()}
        charters.write(path, agreed, signatures)
        return agreed


def flower_key() -> str:
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def members(folder: Path, key: PublicKey) -> Members:
    identities = {
        name: new_identity(folder / f"{at}.identity.json", name) for at, name in enumerate(ROLES)
    }
    enrolments = {
        name: enrol(identities[name], role, "" if role == "coordinator" else flower_key())
        for name, role in ROLES.items()
    }
    charter = charters.new(
        "exchange of Shanghai",
        enrolments["exchange"],
        analyses=["glm", "questions"],
        contracts={"claims-v1": 1},
        limits=CharterLimits(key_bits=2048),
    )
    for name in list(ROLES)[1:]:
        charter = charters.with_member(charter, enrolments[name])
    return Members(identities, enrolments, charters.with_key(charter, key, "supervisor"))
