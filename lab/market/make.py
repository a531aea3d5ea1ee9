"""A simulated insurance market like Shanghai's: one public insurer, several commercial ones.

Three years of claims on the same persons, in a folder for each party, with fraud of eight kinds
planted and the truth kept apart. ``lab/market/facts.py`` says what is published and what invented.
The same seed makes the same files, bit for bit.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.errors import ConfigurationError
from lab.market import care, population
from lab.market.assumptions import CONDITIONS, PRODUCTS, Assumptions, InsurerAssumptions
from lab.market.care import Numbers, Rows, join, take
from lab.market.fraud_at_insurers import by_claimants
from lab.market.fraud_at_providers import Scene, by_providers
from lab.market.population import DAYS, NEVER, YEAR, YEARS, Population, Providers, World
from lab.market.settlement import FIRST_PROVIDER, MISSING, investigation, settled
from lab.sums import Floats
from lab.tables.market_folder import MOST_INSURERS, PAYERS, REGISTER, contract

#: Of what is made from the same seed and assumptions; raise it when the generator changes.
VERSION = 1
FEWEST, MOST = 1_000, 20_000_000
#: Claim numbers of the payers lie so far apart.
APART = 1_000_000_000


@dataclass(frozen=True)
class MarketFolder:
    """A market on disk: its folder, each table's path and rows, how long it took."""

    folder: Path
    tables: dict[str, Path]
    rows: dict[str, int]
    seconds: float


def make(
    folder: Path,
    *,
    persons: int,
    insurers: int = 4,
    seed: int = 0,
    assumptions: Assumptions | None = None,
) -> MarketFolder:
    """Make a market in ``folder``, all of it or nothing.

    Written are ``public/`` (persons, conditions, claims), ``insurer-1/`` and on (policies,
    claims), ``register/providers.parquet`` for everybody, ``truth/claims.parquet`` and
    ``market.toml``. Raises :class:`ConfigurationError` for
    a folder with something in it and for sizes that make no market.
    """
    start = time.perf_counter()
    a = assumptions or Assumptions.read()
    _refuse(folder, persons, insurers, seed, a)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise _unwritten(folder, error) from None
    try:
        rows = _fill(draft, a, _first_insurers(a, insurers), persons, seed)
        draft.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    except OSError as error:
        raise _unwritten(folder, error) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    tables = {name: folder / name for name in rows}
    return MarketFolder(folder, tables, rows, time.perf_counter() - start)


def _unwritten(folder: Path, error: OSError) -> ConfigurationError:
    reason = error.strerror or str(error)
    return ConfigurationError(f"{folder}: cannot be written: {reason}; nothing was left there")


def _refuse(folder: Path, persons: int, insurers: int, seed: int, a: Assumptions) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder}: is not empty; name a new folder")
    for name, value, low, high in (
        ("persons", persons, FEWEST, MOST),
        ("insurers", insurers, 1, MOST_INSURERS),
        ("seed", seed, 0, 2**63),
    ):
        if not low <= value <= high:
            raise ConfigurationError(f"{name} must be {low} to {high}, got {value}")
    columns = contract("claims").columns
    for name, column, names in (
        ("districts", "district", tuple(a.districts.persons)),
        ("chapters.code", "icd_chapter", a.chapters.code),
    ):
        if names != columns[column].levels:
            levels = ", ".join(columns[column].levels or ())
            raise ConfigurationError(
                f"assumptions, {name}: must be the levels of column {column} in claims.toml: {levels}"
            )


def _first_insurers(a: Assumptions, count: int) -> tuple[InsurerAssumptions, ...]:
    """The first insurers; beyond those assumed they come again, each time half as large."""
    picks = []
    for k in range(count):
        again, like = divmod(k, len(a.insurers))
        smaller = {name: w / 2**again for name, w in a.insurers[like].products.items()}
        picks.append(a.insurers[like].model_copy(update={"products": smaller}))
    return tuple(picks)


def _fill(
    draft: Path, a: Assumptions, insurers: tuple[InsurerAssumptions, ...], persons: int, seed: int
) -> dict[str, int]:
    """Write every table of a market; rows by table."""
    world_rng, care_rng, fraud_rng, file_rng = (
        np.random.default_rng(s) for s in np.random.SeedSequence([VERSION, seed]).spawn(4)
    )
    w = population.world(a, insurers, persons, world_rng)
    invoices = Numbers()
    scene = Scene(w.a, w.pop, w.prov, w.cover, invoices, Numbers(), fraud_rng)
    rows = by_providers(scene, care.encounters(w, invoices, care_rng))
    claims = care.commercial(w, rows, invoices, care_rng)
    rows, claims = by_claimants(scene, insurers, rows, claims)
    claims = care.assess(a, claims, care_rng)
    new_number = invoices.shuffled(file_rng)
    counts, truth = {}, []
    for k, payer in enumerate(PAYERS[: len(insurers) + 1]):
        own = take(claims, claims["payer"] == k) if k else _at_fund(a, rows, file_rng)
        if not len(own["day"]):
            raise ConfigurationError(f"{payer} would have no claims; raise the number of persons")
        own["invoice"] = new_number[own["invoice"]]
        own = take(own, np.lexsort((file_rng.random(len(own["day"])), own["day"])))
        columns, facts = _claims(w, own, k, insurers, file_rng)
        counts[f"{payer}/claims.parquet"] = _write(draft, payer, "claims", columns)
        truth.append(facts)
        if k:
            policies = _policies(w, k - 1)
            counts[f"{payer}/policies.parquet"] = _write(draft, payer, "policies", policies)
    counts["public/persons.parquet"] = _write(draft, "public", "persons", _persons(w.pop))
    counts["public/conditions.parquet"] = _write(draft, "public", "conditions", _conditions(w.pop))
    counts[REGISTER] = _write(draft, "register", "providers", _register(w.prov))
    counts["truth/claims.parquet"] = _write(draft, "truth", "claims", join(truth), "truth")
    _sign(draft, a, len(insurers), persons, seed, list(counts))
    return counts


def _at_fund(a: Assumptions, rows: Rows, rng: np.random.Generator) -> Rows:
    """The encounters that the fund settles, as its claims; some are not in its files yet."""
    lately = rows["day"] >= DAYS - a.noise.late_days
    own = take(rows, ~rows["own"] & ~(lately & (rng.random(len(lately)) < a.noise.late)))
    outcome = np.zeros(len(own["day"]), dtype=np.int8)
    return own | {"claimed": own["billed"], "paid": own["fund"], "outcome": outcome}


def _claims(
    w: World,
    rows: Rows,
    payer: int,
    insurers: tuple[InsurerAssumptions, ...],
    rng: np.random.Generator,
) -> tuple[Rows, Rows]:
    """One payer's claims as it has them, and the truth about them."""
    columns, size = settled(w, rows), len(rows["day"])
    fraud = rows["typology"] > 0
    since = columns["days_since_inception"]
    oddness = {
        "cost": _standard(np.log(columns["cost_to_drg_mean"])),
        "provider": _standard(np.log(columns["provider_cost"])),
        "early": (since >= 0) & (since < YEAR // 2),
    }
    rate = insurers[payer - 1].investigated if payer else w.a.public.investigated
    inquiry, proof = investigation(w.a, rate, oddness, fraud, rng)
    claim = payer * APART + 1 + np.arange(size, dtype=np.int64)
    truth: Rows = {
        "claim": claim,
        "fraud": fraud.astype(np.int8),
        "typology": rows["typology"],
        "scheme_id": rows["scheme"],
    }
    return columns | {
        "claim": claim,
        "payer": np.full(size, payer, dtype=np.int8),
        "investigated": inquiry.astype(np.int8),
        "confirmed": proof.astype(np.int8),
    }, truth


def _standard(values: Floats) -> Floats:
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-9))


def _persons(pop: Population) -> Rows:
    return {
        "person": np.arange(1, pop.size + 1),
        "age": pop.age,
        "sex": pop.male.astype(np.int8),
        "district": pop.district,
        "employment": pop.employment,
        "income_band": pop.income,
        "scheme": np.where(pop.employee, 0, 1).astype(np.int8),
    }


def _conditions(pop: Population) -> Rows:
    """What came on the public insurer's record before the market's end, and when."""
    person, condition = np.nonzero(pop.first_day.T < NEVER)
    return {
        "person": person + 1,
        "condition": condition.astype(np.int8),
        "first_day": pop.first_day[condition, person],
    }


def _register(prov: Providers) -> Rows:
    return {
        "provider": FIRST_PROVIDER + np.arange(len(prov.level)),
        "level": np.where(prov.level == 0, MISSING, prov.level),
        "district": prov.district,
    }


def _policies(w: World, insurer: int) -> Rows:
    """One insurer's policies that were in force on any day of the market."""
    a, cover = w.a, w.cover
    product, person = np.nonzero((cover.insurer == insurer) & (cover.end > 0))
    start, end = cover.start[product, person], cover.end[product, person]
    terms = [a.terms[name] for name in PRODUCTS]
    asks = np.array([t.asks for t in terms])[product]
    declaration = cover.declared[product, person]
    first = np.arange(YEARS)[:, None] * YEAR
    share = (np.minimum(end, first + YEAR) - np.maximum(start, first)).clip(0) / YEAR
    price = np.array([a.products[name].premium for name in PRODUCTS])[product]
    return {
        "person": person + 1,
        "policy": cover.number[product, person],
        "product": product.astype(np.int8),
        "inception_day": start,
        "end_day": end,
        "sum_insured": np.array([t.sum_insured for t in terms])[product],
        "deductible": np.array([t.deductible for t in terms])[product],
        "premium": np.round((price * share.T).sum(axis=1), 2),
        "exposure_years": share.sum(axis=0),
    } | {
        f"declared_{name}": np.where(asks, declaration >> c & 1, MISSING)
        for c, name in enumerate(CONDITIONS)
    }


def _write(draft: Path, party: str, table: str, columns: Rows, kind: str | None = None) -> int:
    """A Parquet file of the columns that the contract names, in its order; returns its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    form = contract(kind or table)
    arrays = {}
    for name, column in form.columns.items():
        values = columns[name]
        mask = _missing(values) if column.nullable else None
        if column.levels is not None:
            codes = pa.array(values, mask=mask)
            arrays[name] = pa.DictionaryArray.from_arrays(codes, list(column.levels))
        else:
            arrays[name] = pa.array(_compact(values), mask=mask)
    path = draft / party / f"{table}.parquet"
    path.parent.mkdir(exist_ok=True)
    texts = [name for name, column in form.columns.items() if column.levels is not None]
    pq.write_table(
        pa.table(arrays), path, compression="zstd", compression_level=1, use_dictionary=texts
    )
    return len(values)


def _missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(np.isnan(values) if values.dtype.kind == "f" else values == MISSING)


def _compact(values: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in four bytes where they fit."""
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    fits = not len(values) or max(int(values.max()), -int(values.min())) < 2**31
    return values.astype(np.int32) if fits else values.astype(np.int64)


def _sign(
    draft: Path, a: Assumptions, insurers: int, persons: int, seed: int, tables: list[str]
) -> None:
    """``market.toml``: what the market was made from, and the SHA-256 of each table."""
    lines = [
        f"generator = {VERSION}",
        f"seed = {seed}",
        f"persons = {persons}",
        f"insurers = {insurers}",
        f'assumptions = "{a.digest}"',
        "",
        "[tables]  # SHA-256",
    ]
    for name in sorted(tables):
        with (draft / name).open("rb") as file:
            lines.append(f'"{name}" = "{hashlib.file_digest(file, "sha256").hexdigest()}"')
    (draft / "market.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
