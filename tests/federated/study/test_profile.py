"""What all parties know of a provider: counted at each, released by rules, joined to each claim."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from federated.app import client_app
from federated.deployment.node import profiles
from federated.deployment.node.run_state import RunState
from federated.deployment.plan import StudyPlan, announced
from federated.federation import Federation
from federated.hiding.masks import Masks
from federated.hiding.paillier import Dealer, KeyAuthority, Paillier
from federated.hiding.protocol import Protection
from federated.messages import Reply, Request, message_of
from federated.messages import read as read_message
from federated.party.party import Party
from federated.run import run
from federated.study.experiment import Experiment
from federated.transport.in_process import InProcessGrid
from lab.errors import ConfigurationError, PeerError, PolicyError
from lab.models import files as models
from lab.models.glm import Task
from lab.models.prediction import predict
from lab.models.profile import Profile, ProfileCells, Profiling, read, release, sums
from lab.privacy.disclosure import Rules
from lab.queries.questions import Compare
from lab.sums import Sums, combine
from secure_agg.keys import PrivateKey
from tests.rigs.members import Members, members

ASKED = Profiling(
    name="clinic",
    by="provider",
    day="day",
    every=30,
    means=("cost",),
    shares={"weekend": {"column": "weekday", "operation": ">=", "value": 5}},
)
CELLS = ProfileCells(asked=ASKED, numbers=(11, 12, 15), first=0, periods=2)
CONTRACT = """name = "claims"
[columns]
person = { type = "integer", role = "identifier" }
provider = { type = "integer", role = "identifier" }
day = { type = "integer", role = "identifier", minimum = 0, maximum = 59 }
payer = { type = "category", levels = ["a", "b", "c"] }
weekday = { type = "integer", minimum = 0, maximum = 6 }
cost = { type = "number" }
fraud = { type = "integer", role = "target", minimum = 0, maximum = 1 }
"""


def claims(rows: int = 600, seed: int = 0) -> pd.DataFrame:
    """Claims of three payers; provider 15 has few, and at provider 12 fraud is common."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "person": rng.integers(1, 150, rows),
            "provider": rng.choice([11, 12, 15], rows, p=[0.6, 0.385, 0.015]),
            "day": rng.integers(0, 60, rows),
            "payer": pd.Categorical(rng.choice(["a", "b", "c"], rows), ["a", "b", "c"]),
            "weekday": rng.integers(0, 7, rows),
            "cost": rng.gamma(2.0, 100.0, rows),
        }
    )
    odds = np.where(frame["provider"] == 12, 0.25, 0.05)
    return frame.assign(fraud=(rng.random(rows) < odds).astype(int))


def parties(frame: pd.DataFrame) -> list[Party]:
    return [
        Party(str(payer), part.iloc[::2], part.iloc[1::2], person="person")
        for payer, part in frame.groupby("payer", observed=True)
    ]


def profile_of(frame: pd.DataFrame, protection: Protection, rules: Rules) -> Profile:
    held = parties(frame)
    nodes = InProcessGrid(client_app(held.__getitem__, protection.hiding), len(held), 2)
    try:
        return Federation(nodes, protection, len(held)).profile(CELLS, rules)
    finally:
        nodes.close()


@pytest.mark.parametrize("opener", [KeyAuthority, Dealer])
def test_profile_under_paillier_is_what_pandas_counts_where_enough_persons_are(
    authority_key: PrivateKey, opener: type
) -> None:
    frame, rules = claims(), Rules.read()
    profile = profile_of(frame, Paillier(opener(authority_key)), rules)
    keys = [frame["provider"], frame["day"] // 30]
    for at, (provider, period) in enumerate((p, k) for p in (11, 12, 15) for k in (0, 1)):
        cell = frame[(keys[0] == provider) & (keys[1] == period)]
        at_party = cell.groupby("payer", observed=True)["person"]
        persons = at_party.nunique().sum()
        enough = persons >= rules.minimum_count.persons
        enough &= (at_party.size() > 0).sum() >= rules.minimum_parties.parties
        visits = at_party.value_counts()
        again, once = (
            mask.sum() >= rules.minimum_count.persons
            and visits[mask].index.get_level_values("payer").nunique()
            >= rules.minimum_parties.parties
            for mask in (visits > 1, visits == 1)
        )
        returning = visits[visits > 1 if again and once else visits > 0 if again else visits > 99]
        expected = {
            "clinic_claims": len(cell) / 30,
            "clinic_persons": persons,
            "clinic_returning": len(returning),
            "clinic_parties": cell["payer"].nunique(),
            "clinic_returning_parties": returning.index.get_level_values("payer").nunique(),
            "clinic_mean_cost": cell["cost"].mean(),
            "clinic_weekend": (cell["weekday"] >= 5).mean(),
        }
        assert enough == (provider != 15)
        for name, value in expected.items():
            found = profile.columns[name][at]
            told = enough and ("returning" not in name or again or once)
            assert found == pytest.approx(value, rel=1e-9) if told else found is None


def rows_of(providers: dict[int, dict[int, int]], seed: int = 0) -> list[pd.DataFrame]:
    """Claims of three parties, provider -> weekday -> how many persons with a claim each."""
    rng, frames = np.random.default_rng(seed), []
    for party in range(3):
        days = [
            (provider, weekday)
            for provider, persons in providers.items()
            for weekday, count in persons.items()
            for _ in range(count // 3 + (party < count % 3))
        ]
        frame = pd.DataFrame(days, columns=["provider", "weekday"])
        cost = rng.gamma(2.0, 100.0, len(frame))
        frames.append(frame.assign(person=range(len(frame)), day=3, cost=cost))
    return frames


def released_profile(
    asked: Profiling, frames: list[pd.DataFrame], rules: Rules | None = None
) -> Profile:
    numbers = tuple(sorted({number for frame in frames for number in frame["provider"]}))
    cells = ProfileCells(asked=asked, numbers=numbers, first=0, periods=1)
    totals = combine([sums(frame, cells, "person") for frame in frames])
    return Profile.of(cells, release(cells, rules or Rules.read(), totals))


def test_a_share_of_few_persons_or_of_all_but_few_is_not_told() -> None:
    days = {11: {2: 40, 6: 12}, 12: {2: 40, 6: 9}, 13: {2: 9, 6: 40}, 14: {2: 40}, 15: {6: 40}}
    weekend = released_profile(ASKED, rows_of(days)).columns["clinic_weekend"]
    assert weekend == (pytest.approx(12 / 52), None, None, None, None)


def test_few_claims_that_are_meant_are_not_told_though_patients_are_many() -> None:
    sunday = Compare(column="weekday", operation="=", value=6)
    some = ASKED.model_copy(update={"where": sunday, "shares": {}})
    days = {11: {2: 40, 6: 12}, 12: {2: 40, 6: 9}, 13: {2: 9, 6: 40}}
    columns = released_profile(some, rows_of(days)).columns
    for name in ("clinic_claims", "clinic_persons", "clinic_mean_cost"):
        assert [value is None for value in columns[name]] == [False, True, True]


def cost_by_thresholds(rules: Rules | None) -> list[float]:
    """Attack: shares of claims above many thresholds, between which lies the one large cost.

    A mean over the claim alone is held back; where the last share that is not 0 ends, it stands.
    """
    frames = rows_of({11: {2: 60}})
    frames[1].loc[7, "cost"] = 48_250.0
    limits = [float(limit) for limit in range(43_000, 55_000, 1_000)]
    brackets = []
    for part in np.array_split(limits, 2):
        shares = {
            f"above_{limit:.0f}": Compare(column="cost", operation=">", value=limit)
            for limit in part
        }
        asked = ASKED.model_copy(update={"shares": shares, "means": ()})
        columns = released_profile(asked, frames, rules).columns
        told = {limit: columns[f"clinic_above_{limit:.0f}"][0] for limit in part}
        brackets += [limit for limit, share in told.items() if share]
    return brackets


def test_shares_at_many_thresholds_do_not_read_one_cost() -> None:
    assert cost_by_thresholds(None) == []
    # The unprotected twin: a party's own rules hold nothing back.
    assert max(cost_by_thresholds(Rules.of_own_rows())) == 48_000.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_what_shares_tell_apart_together_is_enough_persons(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    frames = rows_of({11: {day: int(rng.integers(0, 40)) for day in range(7)}, 12: {1: 50}}, seed)
    days = [tuple(sorted(rng.choice(7, 2, replace=False))) for _ in range(count)]
    shares = {
        f"s{k}": Compare(column="weekday", operation="<=" if k % 2 else ">", value=float(day[0]))
        for k, day in enumerate(days)
    }
    asked = ASKED.model_copy(update={"shares": shares, "means": ()})
    profile, pooled = released_profile(asked, frames), pd.concat(frames)
    for at, number in enumerate((11, 12)):
        own = pooled[pooled["provider"] == number]
        told = [name for name in shares if profile.columns[f"clinic_{name}"][at] is not None]
        holds = {
            name: own["weekday"].le(shares[name].value)
            if shares[name].operation == "<="
            else own["weekday"].gt(shares[name].value)
            for name in told
        }
        for name in told:
            assert profile.columns[f"clinic_{name}"][at] == pytest.approx(holds[name].mean())
        if told:
            assert own.groupby([holds[name] for name in told]).size().min() >= 10


def test_a_profile_has_few_shares() -> None:
    shares = {f"s{k}": {"column": "cost", "operation": ">", "value": k} for k in range(7)}
    with pytest.raises(ValueError, match="at most 6 items"):
        Profiling(name="clinic", by="provider", day="day", shares=shares)


def test_profile_of_few_persons_or_under_other_rules_is_not_opened(
    authority_key: PrivateKey,
) -> None:
    loose = Rules.of_own_rows()
    with pytest.raises(PolicyError, match="other disclosure rules"):
        profile_of(claims(), Paillier(KeyAuthority(authority_key)), loose)
    with pytest.raises(PolicyError, match="'profile' is of cells that may stand on few persons"):
        profile_of(claims(), Masks(), Rules.read())


def test_party_without_persons_and_party_without_the_profile_refuse() -> None:
    one = parties(claims())[0]
    task = Task(target="fraud", family="binomial", profiles=("ab",))
    with pytest.raises(PeerError, match="not released"):
        one.rows(task, "train")
    with pytest.raises(PeerError, match="not readable"):
        read(b'{"cells": 3}')
    with pytest.raises(PeerError, match="not readable"):
        read(b"[" * 100_000)


def test_claims_in_no_cell_get_no_value() -> None:
    frame = claims(50)
    released = release(CELLS, Rules.of_own_rows(), sums(frame, CELLS, "person"))
    profile = Profile.of(CELLS, released)
    strange = frame.assign(provider=np.where(frame.index < 5, 13, frame["provider"]))
    strange.loc[5:9, "day"] = 99
    joined = profile.join(strange)
    assert joined["clinic_claims"].isna().to_numpy()[:10].all()
    assert joined["clinic_claims"].notna().to_numpy()[10:].all()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """An experiment file over claims of three payers."""
    claims(900).astype({"payer": str}).to_parquet(tmp_path / "claims.parquet")
    pd.DataFrame({"provider": [11, 12, 15, 16]}).to_csv(tmp_path / "register.csv", index=False)
    (tmp_path / "claims.toml").write_text(CONTRACT)
    text = f"""name = "clinics"
[data]
path = "{tmp_path}/claims.parquet"
contract = "{tmp_path}/claims.toml"
target = "fraud"
person = "person"
group_by_person = false
features = ["cost", "clinic_claims", "clinic_weekend"]
missing = "MISSING"
[parties]
split = "column"
column = "payer"
[model]
kind = "trees"
trees = 4
depth = 2
min_child_rows = 5
[detection]
groups = ["weekday"]
amount = "cost"
[protection]
key_bits = 2048
[arms]
run = ["alone", "without", "federated", "pooled"]
replicates = 5
[[profile]]
name = "clinic"
by = "provider"
day = "day"
register_file = "{tmp_path}/register.csv"
shares = {{ weekend = {{ column = "weekday", operation = ">=", value = 5 }} }}
"""
    path = tmp_path / "clinics.toml"
    path.write_text(text.replace('missing = "MISSING"\n', ""))
    return path


def test_model_is_kept_with_the_profile_it_needs_and_scores_plain_claims(
    study: Path, tmp_path: Path
) -> None:
    found = run(study, runs=tmp_path / "runs", track=False)
    assert set(found.scores.index.get_level_values("arm")) == {
        "alone", "without", "federated", "pooled"
    }  # fmt: skip
    joining = found.joining.set_index("party")
    assert list(joining.index) == ["payer a", "payer b", "payer c"]
    fitted = found.arms["federated"].models["all"]["model"]
    kept = models.read(found.folder / "models" / "federated.json")
    test = pd.concat([party.test for party in found.market.parties])
    joined = fitted.profiles[0].join(test)
    assert np.array_equal(kept.predict(test), fitted.model.predict(joined))
    scored, _ = predict(found.folder, str(tmp_path / "claims.parquet"))
    assert np.array_equal(scored["prediction"], kept.predict(claims(900)))
    receipt = found.receipt.set_index("statistic")
    assert (receipt.loc["profile", "hiding"] == "paillier").all()
    assert (receipt.loc["profile", "rows"] == 0).all()
    assert "clinic_claims" in (found.folder / "models" / "federated.json").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"protection.sums": "masks"}, "masks"),
        ({"data.person": None}, "person"),
        ({"profile": [{"name": "c", "by": "nobody", "day": "day"}]}, "no column 'nobody'"),
        ({"profile": [{"name": "c", "by": "provider", "day": "cost"}]}, "whole number"),
        ({"profile": [{"name": "c", "by": "provider", "day": "day"}]}, "register_file"),
        ({"data.group_by_person": True}, "group_by_person"),
        ({"model.family": "poisson"}, "family"),
        ({"detection.groups": ["nothing"]}, "no column 'nothing'"),
    ],
)
def test_experiment_refuses_profiles_and_detection_that_cannot_be(
    study: Path, change: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        run(Experiment.read(study, change), track=False)


# Among real parties.

RUN = "ab" * 8


@dataclass
class Asked:
    """A run at an insurer and at the supervisor, in which one profile was released."""

    members: Members
    study: StudyPlan
    insurer: RunState
    supervisor: RunState
    released: Profile

    def consider(self, cells: ProfileCells, rules: Rules | None = None) -> None:
        profiles.consider(self.insurer, self.study, Rules.read(), question(cells, rules))

    def join(self, profile: Profile, word: RecordDict, run: str = RUN) -> None:
        given = message_of(
            profile=profile.model_dump_json().encode(), voucher=read_message(word, "voucher")
        )
        kept = replace(self.insurer, run=run)
        profiles.check_joined(kept, self.members.charter, self.study, given)

    def word(self, digest: str, who: str = "supervisor") -> RecordDict:
        charter, identity = self.members.charter, self.members.identities[who]
        told = message_of(digest=digest.encode())
        return profiles.vouch(self.supervisor, charter, identity, told)


def question(cells: ProfileCells, rules: Rules | None = None) -> Request:
    told = {"cells": cells.model_dump(mode="json")}
    told |= {"rules": json.loads((rules or Rules.read()).model_dump_json())}
    return Request(f"{RUN}-1", "profile", told, {}, "paillier", ("a", "b", "c"))


@pytest.fixture
def asked(study: Path, tmp_path: Path, authority_key: PrivateKey) -> Asked:
    told = announced(
        Experiment.read(
            study, {"profile": [{**DEPLOYED, "register_file": str(tmp_path / "register.csv")}]}
        )
    )
    made = members(tmp_path, authority_key.public)
    kept = Asked(made, told, RunState(RUN), RunState(RUN), Profile.of(CELLS, given(claims())))
    kept.consider(CELLS)
    reply = Reply.of("supervisor", given(claims()), None).to_record()
    profiles.note_released(kept.supervisor, question(CELLS).to_record(), reply)
    return kept


DEPLOYED = ASKED.model_dump(mode="json")


def given(frame: pd.DataFrame) -> Sums:
    parts = [sums(part, CELLS, "person") for _, part in frame.groupby("payer", observed=True)]
    return release(CELLS, Rules.read(), combine(parts))


def test_a_released_profile_is_joined_in_its_run(asked: Asked) -> None:
    asked.join(asked.released, asked.word(asked.released.digest))
    asked.consider(CELLS)  # the same question may come again, with fewer parties behind it


def test_a_profile_that_was_not_released_or_not_asked_is_not_joined(asked: Asked) -> None:
    made_up = Profile.of(CELLS, given(claims(seed=1)))
    with pytest.raises(PeerError, match="not released here"):
        asked.word(made_up.digest)
    good = asked.word(asked.released.digest)
    with pytest.raises(PeerError, match="supervisor does not vouch for"):
        asked.join(made_up, good)
    with pytest.raises(PeerError, match="supervisor does not vouch for"):
        asked.join(asked.released, asked.word(asked.released.digest, "ping-an"))
    with pytest.raises(PeerError, match="supervisor does not vouch for"):
        asked.join(asked.released, good, run="cd" * 8)
    fewer = CELLS.model_copy(update={"numbers": (11, 12)})
    with pytest.raises(PeerError, match="not asked of this party"):
        asked.join(Profile(cells=fewer, columns=few(asked.released)), good)


def test_a_profile_that_was_joined_is_kept_whole_or_not_used(asked: Asked, tmp_path: Path) -> None:
    for _ in range(2):
        profiles.save_profiles(tmp_path, RUN, {asked.released.digest: asked.released})
    assert profiles.load_profiles(tmp_path, "cd" * 8) == {}
    assert profiles.load_profiles(tmp_path, RUN) == {asked.released.digest: asked.released}
    (path,) = tmp_path.glob("*.profile")
    path.write_bytes(path.read_bytes().replace(b"0.", b"1.", 1))
    with pytest.raises(PeerError, match="is damaged; it answers no more"):
        profiles.load_profiles(tmp_path, RUN)


def few(profile: Profile) -> dict[str, tuple[float | None, ...]]:
    return {name: values[:4] for name, values in profile.columns.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"numbers": (11,)}, "requested for other providers before"),
        ({"first": 1}, "this profile was not announced"),
        ({"periods": 1}, "this profile was not announced"),
        ({"asked": ASKED.model_copy(update={"every": 20})}, "this profile was not announced"),
    ],
)
def test_cells_are_asked_once_over_the_days_of_the_contract(
    asked: Asked, change: dict[str, object], says: str
) -> None:
    with pytest.raises(PolicyError, match=says):
        asked.consider(CELLS.model_copy(update=change))


def test_a_profile_is_not_answered_under_other_rules(asked: Asked) -> None:
    with pytest.raises(PolicyError, match=r"\[disclosure\] the request's rules"):
        asked.consider(CELLS, Rules.of_own_rows())
