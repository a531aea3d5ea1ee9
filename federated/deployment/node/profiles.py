"""Profiles of providers: a node joins to its rows only a profile that was released in this run.

A coordinator that could invent a profile could single out the claims of one provider in one period.
So a node answers about the cells of a profile once in a run, over the days of its contract, and
joins only a profile whose releaser has signed that it released exactly this one in this run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from federated.deployment.charter import Charter
from federated.deployment.node.rules.refusals import Refusal
from federated.deployment.node.run_state import RunState
from federated.messages import Reply, Request, message_of, read
from federated.study.plan import StudyPlan
from lab.errors import ConfigurationError, LogError, PeerError
from lab.files import write_whole
from lab.models import profile
from lab.models.profile import Profile, ProfileCells
from lab.privacy.disclosure import Rules
from lab.records import parse
from secure_agg.identity import Identity, signed_by

PURPOSE = b"released profile"
#: Records of a run's state: the cells this party was asked about; the profiles it released.
REQUESTED_CELLS, RELEASED_PROFILES = "profiles asked", "profiles released"


def releaser(charter: Charter) -> str:
    """Who releases what the rules leave of a total: the supervisor, or the insurer in the first
    seat. Raises :class:`PeerError` where nobody does."""
    if charter.key is None:
        raise PeerError(
            "profiles need a supervisor or a split key: the coordinator must not release them"
        )
    return charter.key.by[0] if charter.key.opens == "authority" else charter.roster.names[0]


def consider(run_state: RunState, study: StudyPlan, rules: Rules, request: Request) -> None:
    """Note the cells that this party is asked about. Raises :class:`Refusal`."""
    cells = parse(ProfileCells, request.arguments.get("cells"), where="the profile")
    definition = cells.asked
    if definition not in study.experiment.profile or cells != profile.cells_of(
        definition, study.contract, cells.numbers
    ):
        raise Refusal("profiles", "this profile was not announced")
    if request.arguments.get("rules") != json.loads(rules.model_dump_json()):
        raise Refusal("disclosure", "the request's rules of disclosure are not this party's")
    digests = run_state.records.config_records.setdefault(REQUESTED_CELLS, ConfigRecord())
    if digests.setdefault(definition.name, digest_of(cells)) != digest_of(cells):
        raise Refusal(
            "profiles", f"profile '{definition.name}' was requested for other providers before"
        )


def digest_of(cells: ProfileCells) -> str:
    """SHA-256 of the cells of a profile."""
    return hashlib.sha256(cells.model_dump_json().encode()).hexdigest()


def note_released(run_state: RunState, content: RecordDict, reply: RecordDict) -> None:
    """Note the profile that was just released, if it is one, to vouch for it from now on."""
    request = Request.from_record(content)
    if request.statistic == "profile":
        cells = ProfileCells.model_validate(request.arguments["cells"])
        result = Profile.of(cells, Reply.from_record(reply).sums)
        run_state.records.config_records.setdefault(RELEASED_PROFILES, ConfigRecord())[
            result.digest
        ] = True


def vouch(
    run_state: RunState, charter: Charter, identity: Identity, content: RecordDict
) -> RecordDict:
    """The releaser's word for a profile. Raises :class:`PeerError` for one it did not release."""
    digest = read(content, "digest").decode("ascii", "replace")
    if digest not in run_state.records.config_records.get(RELEASED_PROFILES, {}):
        raise PeerError("coordinator: asks to vouch for a profile that was not released here")
    signature = identity.sign(PURPOSE, _statement(charter, run_state.run, digest))
    return message_of(voucher=signature)


def check_joined(
    run_state: RunState, charter: Charter, study: StudyPlan, content: RecordDict
) -> None:
    """Raises :class:`PeerError` unless a profile is of cells that were asked of this party in this
    run, and its releaser vouches for it."""
    candidate = profile.read(read(content, "profile"))
    digests = run_state.records.config_records.get(REQUESTED_CELLS, {})
    if digests.get(candidate.cells.asked.name) != digest_of(candidate.cells):
        raise PeerError("coordinator: sends a profile of cells that were not asked of this party")
    if study.experiment.protection.sums == "clear":
        return  # the coordinator opens, and nobody can vouch
    name = releaser(charter)
    statement = _statement(charter, run_state.run, candidate.digest)
    key = charter.member(name).card.verifying
    if not signed_by(key, PURPOSE, statement, read(content, "voucher")):
        raise PeerError(f"coordinator: sends a profile that {name} does not vouch for")


def save_profiles(folder: Path, run: str, profiles: Mapping[str, Profile]) -> None:
    """Write the profiles of a run, each once: a state that is written with every message is no
    place for them. Raises :class:`LogError` where they can't be written."""
    for digest, each in profiles.items():
        path = folder / f"{run}.{digest}.profile"
        if not path.exists():
            try:
                write_whole(path, each.model_dump_json().encode(), 0o600)
            except ConfigurationError as error:
                raise LogError(
                    f"{error}; nothing leaves this party until the file can be written"
                ) from None


def load_profiles(folder: Path, run: str) -> dict[str, Profile]:
    """The profiles that were joined in a run. Raises :class:`PeerError` for one that is damaged."""
    profiles = {}
    for path in sorted(folder.glob(f"{run}.*.profile")):
        digest = path.name.split(".")[1]
        try:
            one = Profile.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            one = None
        if one is None or one.digest != digest:
            raise PeerError(
                f"this party's profile of run {run} is damaged; it answers no more in this run"
            )
        profiles[digest] = one
    return profiles


def _statement(charter: Charter, run: str, digest: str) -> bytes:
    return f"{charter.digest} {run} {digest}".encode()
