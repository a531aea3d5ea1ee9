"""A charter is what all members signed, to the last character; whoever did not is named."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from federated.cli.main import lab
from federated.deployment import charter as charters
from federated.deployment.charter import (
    Charter,
    CharterLimits,
    read_signed,
    signatures_beside,
)
from federated.deployment.enrolment import Enrolment, enrol, load_identity, new_identity
from federated.party.statistics import COMMON, analyses, belongs, find
from lab.errors import ConfigurationError, LabError, PeerError
from lab.models.files import KINDS, statistics_of
from lab.statistics import ACROSS, ANY_MODEL
from secure_agg.identity import Identity
from secure_agg.keys import PrivateKey
from secure_agg.shares import deal
from tests.rigs.members import Members, flower_key, members


@pytest.fixture
def five(tmp_path: Path, authority_key: PrivateKey) -> Members:
    return members(tmp_path, authority_key.public)


def test_a_charter_that_all_signed_is_read_back(five: Members, tmp_path: Path) -> None:
    path = tmp_path / "charter.json"
    five.sign(path)
    read = read_signed(path)
    assert read == five.charter
    assert read.digest == five.charter.digest
    assert read.roster.names == ("city fund", "ping-an", "太保")


def test_the_digest_does_not_depend_on_how_the_file_is_laid_out(
    five: Members, tmp_path: Path
) -> None:
    path = tmp_path / "charter.json"
    five.sign(path)
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True, indent=7))
    assert read_signed(path).digest == five.charter.digest


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a JSON document holds a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inside:
        if isinstance(item, dict | list) and item:
            yield from leaves(item, (*place, key))
        else:
            yield (*place, key)


def changed(value: Any) -> Any:
    match value:
        case int() | float():
            return value + 1
        case str() if value:
            return value[:-1] + ("1" if value[-1] != "1" else "2")
    return "1"


def test_a_change_of_any_value_after_signing_is_refused(five: Members, tmp_path: Path) -> None:
    path = tmp_path / "charter.json"
    five.sign(path)
    document = json.loads(path.read_text())
    places = list(leaves(document))
    assert len(places) > 35
    for place in places:
        altered = json.loads(path.read_text())
        spot = altered
        for key in place[:-1]:
            spot = spot[key]
        spot[place[-1]] = changed(spot[place[-1]])
        other = tmp_path / "altered.json"
        other.write_text(json.dumps(altered))
        signatures_beside(other).write_bytes(signatures_beside(path).read_bytes())
        with pytest.raises(ConfigurationError):
            read_signed(other)


def test_a_charter_changed_after_signing_names_both_hashes(five: Members, tmp_path: Path) -> None:
    path = tmp_path / "charter.json"
    five.sign(path)
    altered = json.loads(path.read_text()) | {"minimum_parties": 4}
    path.write_text(json.dumps(altered))
    with pytest.raises(ConfigurationError) as caught:
        read_signed(path)
    now = Charter.read(path).digest
    assert f"ping-an: signed {five.charter.digest}, and this charter is {now}" in str(caught.value)


def test_members_who_did_not_sign_or_signed_wrongly_are_named(
    five: Members, tmp_path: Path
) -> None:
    signatures = {n: charters.sign(five.charter, i) for n, i in five.identities.items()}
    del signatures["ping-an"]
    signatures["太保"] = signatures["city fund"]
    absent = charters.missing(five.charter, signatures)
    assert absent == {"ping-an": "has not signed", "太保": "the signature is not by its key"}
    charters.write(tmp_path / "charter.json", five.charter, signatures)
    with pytest.raises(ConfigurationError, match="ping-an: has not signed"):
        read_signed(tmp_path / "charter.json")


def test_nobody_signs_a_charter_that_holds_other_keys_in_its_name(five: Members) -> None:
    with pytest.raises(PeerError, match="other keys for ping-an"):
        charters.sign(five.charter, Identity.generate("ping-an"))
    with pytest.raises(PeerError, match="no member 'a stranger'"):
        charters.sign(five.charter, Identity.generate("a stranger"))


def test_a_new_member_is_the_next_version_and_voids_signatures(five: Members) -> None:
    signatures = {n: charters.sign(five.charter, i) for n, i in five.identities.items()}
    newcomer = enrol(Identity.generate("reinsurer"), "commercial", flower_key())
    grown = charters.with_member(five.charter, newcomer)
    assert grown.version == five.charter.version + 1
    assert charters.missing(grown, signatures).keys() == {m.name for m in grown.members}
    assert grown.key == five.charter.key


def test_a_split_key_is_held_by_all_insurers_and_dealt_again_for_a_new_one(
    five: Members, authority_key: PrivateKey
) -> None:
    split, _ = deal(authority_key, five.charter.roster.names)
    held = charters.with_key(five.charter, authority_key.public, split)
    assert held.key is not None
    assert held.key.by == five.charter.roster.names
    newcomer = enrol(Identity.generate("reinsurer"), "commercial", flower_key())
    assert charters.with_member(held, newcomer).key is None
    few, _ = deal(authority_key, five.charter.roster.names[:2])
    with pytest.raises(ConfigurationError, match="held by every insurer"):
        charters.with_key(five.charter, authority_key.public, few)


@pytest.mark.parametrize("holder", ["exchange", "ping-an", "nobody"])
def test_only_a_supervisor_is_a_key_authority(
    five: Members, authority_key: PrivateKey, holder: str
) -> None:
    with pytest.raises(ConfigurationError, match="one supervisor, who is not the coordinator"):
        charters.with_key(five.charter, authority_key.public, holder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"minimum_parties": 2}, "greater than or equal to 3"),
        ({"coordinator": "ping-an"}, "exactly one coordinator"),
        ({"analyses": ["glm", "glm"]}, "named twice"),
        ({"analyses": []}, "analyses"),
        ({"limits": CharterLimits(key_bits=3072).model_dump()}, "at least 3072 bits"),
        ({"minimum_rows": 3}, "unknown key 'minimum_rows'"),
    ],
)
def test_a_charter_that_cannot_stand_is_refused(
    five: Members, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "charter.json"
    path.write_text(json.dumps(five.charter.model_dump(mode="json") | change))
    with pytest.raises(ConfigurationError, match=words):
        Charter.read(path)


def test_two_members_share_neither_name_nor_key(five: Members) -> None:
    with pytest.raises(ConfigurationError, match="same name"):
        charters.with_member(five.charter, five.enrolments["ping-an"])
    seeded = Identity("twin", bytes(32)), Identity("other twin", bytes(32))
    first, second = (enrol(one, "commercial", flower_key()) for one in seeded)
    with pytest.raises(ConfigurationError, match="same key"):
        charters.with_member(charters.with_member(five.charter, first), second)
    key = five.enrolments["ping-an"].member.flower_key
    with pytest.raises(ConfigurationError, match="same flower_key"):
        charters.with_member(five.charter, enrol(Identity.generate("x"), "commercial", key))


def test_fewer_insurers_than_the_minimum_cannot_begin(
    five: Members, tmp_path: Path, authority_key: PrivateKey
) -> None:
    few = charters.new(
        "few", five.enrolments["exchange"], analyses=["glm"], contracts={"claims-v1": 1}
    )
    path = tmp_path / "charter.json"
    charters.write(path, few, {"exchange": charters.sign(few, five.identities["exchange"])})
    with pytest.raises(ConfigurationError, match="needs 3 insurers or more, has 0"):
        read_signed(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda member: member | {"role": "public"},
        lambda member: member | {"name": "ping-an 2"},
        lambda member: member | {"flower_key": flower_key()},
        lambda member: member | {"receiving": Identity.generate("x").card.receiving.hex()},
        lambda member: member | {"verifying": Identity.generate("x").card.verifying.hex()},
    ],
)
def test_an_enrolment_altered_on_the_way_is_refused(
    five: Members, tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    document = five.enrolments["ping-an"].model_dump(mode="json")
    path = tmp_path / "enrolment.json"
    path.write_text(json.dumps(document))
    assert Enrolment.read(path) == five.enrolments["ping-an"]
    path.write_text(json.dumps(document | {"member": change(document["member"])}))
    with pytest.raises(PeerError, match="proof is not by its key"):
        Enrolment.read(path)


def test_a_key_whose_point_is_compressed_is_no_key_and_no_defect() -> None:
    kind, data = flower_key().split()[:2]
    key = bytearray(base64.b64decode(data))
    key[key.index(b"\x00\x00\x00\x61\x04") + 4] = 2
    with pytest.raises(ValueError, match="flower_key is no OpenSSH public key"):
        enrol(
            Identity.generate("reinsurer"), "commercial", f"{kind} {base64.b64encode(key).decode()}"
        )


def test_fingerprints_that_people_compare_tell_members_apart(five: Members) -> None:
    prints = {member.fingerprint for member in five.charter.members}
    assert len(prints) == len(five.charter.members)
    altered = five.enrolments["ping-an"].member.model_dump() | {"role": "public"}
    assert type(five.charter.members[0]).model_validate(altered).fingerprint not in prints


def test_every_statistic_belongs_to_an_analysis() -> None:
    rows = [*COMMON.values(), *(row for kind in KINDS for row in statistics_of(kind))]
    assert {row.analysis for row in rows} - {ANY_MODEL, ACROSS} == set(analyses())
    assert all(find(row.name) == row for row in rows)
    assert all(belongs(row.name, analyses()) for row in rows)


def test_what_no_allowed_analysis_asks_for_is_not_allowed(five: Members) -> None:
    assert five.charter.allows("glm_step")
    assert five.charter.allows("cells")
    assert not five.charter.allows("network_update")
    assert not five.charter.allows("rows")


def test_a_party_with_another_charter_is_refused_with_both_hashes() -> None:
    charters.same("ab", "ab", "ping-an")
    with pytest.raises(PeerError, match="ping-an uses charter cd, this party uses ab"):
        charters.same("ab", "cd", "ping-an")


def test_an_identity_is_its_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    made = new_identity(path, "ping-an")
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_identity(path).card == made.card
    with pytest.raises(ConfigurationError, match="never replaced"):
        new_identity(path, "ping-an")
    seed = json.loads(path.read_text())["seed"]
    path.write_text(path.read_text().replace(seed, seed[:-2]))
    with pytest.raises(ConfigurationError, match="damaged") as caught:
        load_identity(path)
    assert seed[:16] not in str(caught.value)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="must be 0600"):
        load_identity(path)


def test_a_file_that_names_a_key_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "charter.json"
    path.write_text('{"name": "a", "name": "b"}')
    with pytest.raises(ConfigurationError, match="named twice"):
        Charter.read(path)


def command(*arguments: object) -> str:
    done = CliRunner().invoke(lab, [str(a) for a in arguments])
    if isinstance(done.exception, LabError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_the_commands_take_members_from_enrolments_to_a_signed_charter(
    five: Members, tmp_path: Path
) -> None:
    at_coordinator, at_member = tmp_path / "charter.json", tmp_path / "member" / "charter.json"
    at_member.parent.mkdir()
    files = []
    for at, enrolment in enumerate(five.enrolments.values()):
        files.append(tmp_path / f"{at}.enrolment.json")
        files[-1].write_text(enrolment.model_dump_json())
    command(
        *("charter", "init", at_coordinator, "--name", "x", "--coordinator", files[0]),
        *("--contract", "claims-v1", "--analysis", "glm", "--analysis", "trees"),
    )
    told = command("charter", "add", at_coordinator, *files[1:])
    assert five.enrolments["太保"].member.fingerprint in told
    for at in range(len(files)):
        at_member.write_bytes(at_coordinator.read_bytes())
        signatures_beside(at_member).unlink(missing_ok=True)
        identity = tmp_path / f"{at}.identity.json"
        command("charter", "sign", at_member, "--identity", identity)
        told = command("charter", "add", at_coordinator, signatures_beside(at_member))
    assert "signed by all 5 members" in told
    assert read_signed(at_coordinator).contracts == {"claims-v1": 1}
    shown = command("charter", "show", at_coordinator)
    assert read_signed(at_coordinator).digest in shown
    assert "no key yet" in shown
    assert json.loads(command("charter", "show", at_coordinator, "--json"))["unsigned"] == {}
    newcomer = tmp_path / "new.enrolment.json"
    newcomer.write_text(
        enrol(Identity.generate("reinsurer"), "commercial", flower_key()).model_dump_json()
    )
    assert "are void" in command("charter", "add", at_coordinator, newcomer)
    with pytest.raises(ConfigurationError, match="and this charter is"):
        command("charter", "add", at_coordinator, signatures_beside(at_member))


@pytest.mark.parametrize(
    ("told", "held"),
    [
        ("claims", {"claims": 1}),
        ("claims-v2", {"claims-v2": 2}),
        ("claims=2", {"claims": 2}),
        ("claims-v2=2", {"claims-v2": 2}),
    ],
)
def test_a_contract_is_named_with_or_without_its_version(
    five: Members, tmp_path: Path, told: str, held: dict[str, int]
) -> None:
    charter, enrolment = tmp_path / "charter.json", tmp_path / "enrolment.json"
    enrolment.write_text(next(iter(five.enrolments.values())).model_dump_json())
    command(
        *("charter", "init", charter, "--name", "x", "--coordinator", enrolment),
        *("--contract", told),
    )
    made = Charter.read(charter)
    assert made.contracts == held
    version = next(iter(held.values()))
    assert made.holds("claims", version) and not made.holds("claims", version + 1)
    charter.unlink()
    with pytest.raises(ConfigurationError, match="claims-v3 names version 3, and 2 is told"):
        command(
            *("charter", "init", charter, "--name", "x", "--coordinator", enrolment),
            *("--contract", "claims-v3=2"),
        )


def paired(five: Members, tmp_path: Path, *more: object) -> Path:
    """A charter whose fund and two insurers are joined, by the command."""
    path = tmp_path / "charter.json"
    five.sign(path)
    command(
        *("charter", "pair", path, "--fund", "city fund=card", "--insurer", "ping-an=member"),
        *("--insurer", "太保=member", "--cap", 5000, *more),
    )
    return path


def test_a_charter_says_whose_persons_are_joined_and_is_signed_anew(
    five: Members, tmp_path: Path
) -> None:
    path = paired(five, tmp_path, "--learns", "fund", "--minimum-persons", 50)
    charter, absent = charters.read(path)
    assert set(absent) == set(five.identities) and charter.version == five.charter.version + 1
    pairs = charter.pairs
    assert pairs is not None and pairs.peers("city fund") == ("ping-an", "太保")
    assert pairs.peers("太保") == ("city fund",) and pairs.minimum_persons == 50
    assert (pairs.common(9000), charter.fewest, five.charter.fewest) == (1000, 2, 3)
    shown = command("charter", "show", path)
    assert "fund: city fund by card; insurers: ping-an by member, 太保 by member" in shown
    assert "the fund alone is told who is common; sets of 5,000" in shown
    with pytest.raises(ConfigurationError, match="add members first"):
        charters.with_member(charter, five.enrolments["ping-an"])


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        (("--insurer", "ping-an=member"), "their sides are all insurers of the charter"),
        (("--insurer", "ping-an=a,b", "--insurer", "太保=a"), "as many columns at each side"),
        (("--insurer", "ping-an"), "needs the form NAME=KEY"),
    ],
)
def test_pairs_that_can_t_be_joined_are_refused(
    five: Members, tmp_path: Path, sides: tuple[str, ...], words: str
) -> None:
    path = tmp_path / "charter.json"
    five.sign(path)
    with pytest.raises(ConfigurationError, match=words):
        command("charter", "pair", path, "--fund", "city fund=card", *sides, "--cap", 9)
