"""Which parties took part in a run, which did not, and why: the table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import RecordDict

from federated.deployment.charter import Charter
from federated.party.state import Released
from lab.errors import PeerError


class Absent(PeerError):
    """Parties without a usable answer, each with the reason; beside them the answers of others."""

    def __init__(self, reasons: Mapping[str, str], answers: Mapping[str, RecordDict]) -> None:
        super().__init__("; ".join(reasons.values()), *reasons)
        self.reasons, self.answers = dict(reasons), dict(answers)


class Silent(Exception):
    """No answer in time."""


@dataclass(frozen=True)
class Outlook:
    """What the coordinator knows of a party. since: when its node came; rows: where it shows them."""

    name: str
    role: str
    since: str
    state: str
    rows: int | None = None


def outlook(
    charter: Charter,
    absent: Mapping[str, str],
    since: Mapping[str, str],
    receipts: Mapping[str, list[Released]],
) -> list[Outlook]:
    """Who was here, since when, the rows behind their sums, and why who left.

    absent: reasons by party; since: when each node came; receipts: of parties that show them.
    """
    parties = []
    for member in charter.members:
        if member.role == "coordinator":
            continue
        rows = [line.rows for line in receipts.get(member.name, [])]
        state = absent.get(member.name, "took part")
        arrival = since.get(member.name, "")[:19].replace("T", " ")
        parties.append(
            Outlook(member.name, member.role, arrival, state, max(rows) if rows else None)
        )
    return parties


def in_one_line(reasons: Mapping[str, str]) -> str:
    """Reasons by party, each told once."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason.removeprefix(f"{name}: "), []).append(name)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in groups.items())


def too_few(remainder: int, least: int, absent: Mapping[str, str], *, together: bool) -> PeerError:
    """What a run ends with where too few parties are left. together: all are asked, or none."""
    advice = "Start the run again to resume it after its last total"
    if together:
        advice += (
            " (lab run --fresh begins anew); totals are of all insurers that are asked, or of none, "
            "and --without NAME leaves out who was in no total before"
        )
    return PeerError(
        f"{remainder} parties are left and {least} are required: {in_one_line(absent)}. {advice}"
    )
