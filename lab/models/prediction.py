"""A table with what a model predicts for each of its rows."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lab.errors import ConfigurationError, ContractError, ModelError
from lab.models import files as models
from lab.models.design import Feature, Number
from lab.models.effects import Effects, reason_columns
from lab.models.files import Product
from lab.models.profile import Profiled
from lab.sums import Floats
from lab.tables import sources
from lab.tables.checks import check
from lab.tables.contracts import Column, Contract
from lab.tables.values import code, level_of, normal

if TYPE_CHECKING:
    from lab.models.files import Model

PREDICTION = "prediction"
ENDINGS = (".csv", ".csv.gz", ".parquet")
SHOWN = 5


def predict(
    model: Path,
    table: str,
    *,
    contract: Contract | None = None,
    query: str | None = None,
    encoding: str | None = None,
    reasons: bool = False,
) -> tuple[pd.DataFrame, list[str]]:
    """(the table's rows as they came, with the column ``prediction``; notes that explain it).

    With ``reasons`` also ``reason_1``, ``effect_1`` and so on (`lab.models.effects`).

    model: a model's file or a run's folder. table: a CSV or Parquet file, or with ``query`` the
    address of a database; ``encoding``: of a CSV that is not UTF-8. Rows keep ``contract`` if one is given, and the model's columns anyway.
    Raises :class:`ContractError` with every violation, :class:`ModelError` where a row has no
    finite prediction, :class:`ConfigurationError` for files that cannot be read.
    """
    predictor = models.read(model)
    if reasons and not hasattr(_bare(predictor), "effects"):
        raise ModelError(
            f"{model}: the score of this model is no sum of what its features add, so that it has no exact "
            "reasons; leave out --reasons, or use a glm or trees"
        )
    texts = [f.column for f, levels, _ in _terms(predictor) if any(map(_is_code, levels))]
    frame, _, origin = sources.unchecked(
        path=table, contract=contract, query=query, texts=texts, encoding=encoding
    )
    for name in sorted({PREDICTION, *(reason_columns() if reasons else ())} & set(frame.columns)):
        raise ContractError(f"{origin}: has a column '{name}' already; rename or drop it")
    if contract is not None:
        check(frame, contract, where=origin)
    rows = input_rows(predictor, frame, where=origin, contract=contract)
    if Path(table).name.removesuffix(".gz").endswith(".csv"):  # numbers as they are written there
        frame = sources.read_file(Path(table), as_text=True, encoding=encoding)
    frame = frame.assign(**{PREDICTION: _predictions(predictor, rows, origin)})
    notes = [_meaning(predictor), *_one_sided(model), *_unknown(predictor, rows)]
    if reasons:
        effects = _effects(predictor, rows)
        table_of_reasons = effects.reasons().set_axis(frame.index, axis="index")
        frame = pd.concat([frame, table_of_reasons], axis="columns")
        notes.insert(1, _meaning_of_effects(predictor, effects))
    return frame, notes


def _predictions(predictor: Model, rows: pd.DataFrame, origin: str) -> Floats:
    with np.errstate(all="ignore"):
        values = predictor.predict(rows)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        first = ", ".join(str(i + 1) for i in wrong[:SHOWN])
        raise ModelError(
            f"{origin}: the model has no finite prediction for {len(wrong):,} rows (first: "
            f"{first}); look there for values far outside what it was trained on"
        )
    return values


def _effects(model: Any, rows: pd.DataFrame) -> Effects:
    """What each feature adds to the linear predictor of each row."""
    for profile in model.profiles if isinstance(model, Profiled) else ():
        rows = profile.join(rows)
    effects: Effects = _bare(model).effects(rows)
    return effects


def _meaning_of_effects(model: Any, effects: Effects) -> str:
    bare = _bare(model)
    link = (bare.frequency if isinstance(bare, Product) else bare).task.law.link
    predictor = {"log": "the logarithm of ", "logit": "the log odds of ", "inverse": "1 over "}
    factor = "; exp(effect) multiplies the prediction" if link == "log" else ""
    return (
        f"reasons: effect_1 is what reason_1 adds to {predictor.get(link, '')}the prediction{factor}; "
        f"against {effects.base:.6g}, that of an average row; all effects of a row add up to its own"
    )


def input_rows(
    predictor: Model, frame: pd.DataFrame, *, where: str, contract: Contract | None = None
) -> pd.DataFrame:
    """The rows as the model reads them: numbers, and levels in their spelling, however they are stored.

    where: what the table is called in errors; contract: says how its numbers are written. Raises :class:`ContractError` with every violation.
    """
    columns = {
        feature.column: _input(levels if text else None)
        for feature, levels, text in sorted(_terms(predictor), key=lambda term: not term[2])
    }
    if not columns:
        return frame
    signs = contract.model_dump(include={"decimal", "thousands"}) if contract else {}
    inputs = Contract(name="inputs of the model", columns=columns, **signs)
    return check(frame, inputs, where=where, open_lists=True)


def _input(levels: tuple[str, ...] | None) -> Column:
    """What a model reads of a column: numbers, or levels in the spelling it was trained on."""
    if levels is None:
        return Column(type="number", nullable=True)
    plain = len({code(level) for level in levels}) == len(levels) == sum(map(_is_normal, levels))
    spelling = "normal" if plain else "exact"
    return Column(type="category", nullable=True, levels=levels, spelling=spelling)


def _is_normal(level: str) -> bool:
    return normal(level) == level


def _is_code(level: str) -> bool:
    """Whether no number is written like this level: then its column is read as text."""
    try:
        return level != level_of(float(level))
    except ValueError:
        return True


def _terms(model: Any) -> Iterator[tuple[Feature, tuple[str, ...], bool]]:
    """What a model reads: feature, its levels if any, and whether its column is read as text."""
    if isinstance(model, Profiled):  # what it looks up, and what the table itself must have
        profile_columns = {column for profile in model.profiles for column in profile.columns}
        profilings = [profile.cells.asked for profile in model.profiles]
        yield from ((Feature(column=c), (), False) for p in profilings for c in (p.by, p.day))
        yield from (term for term in _terms(_bare(model)) if term[0].column not in profile_columns)
    elif isinstance(model, Product):
        yield from _terms(model.frequency)
        yield from _terms(model.severity)
    else:
        for term in models.terms_of(model):
            number = isinstance(term, Number) or getattr(term, "edges", None) is not None
            of_text = term.feature.ordinal or (not number and term.feature.cut is None)
            yield term.feature, term.levels, of_text


def _bare(model: Any) -> Any:
    """The model without the profiles its features come from."""
    return model.model if isinstance(model, Profiled) else model


def _meaning(model: Any) -> str:
    model = _bare(model)
    assert not isinstance(model, Profiled)
    first, last = (
        (model.frequency.task, model.severity.task)
        if isinstance(model, Product)
        else (model.task, model.task)
    )
    words = "the probability that" if last.family == "binomial" else "the mean of"
    meaning = f"{PREDICTION}: {words} {last.target}" + " is 1" * (last.family == "binomial")
    if last.per and first is last:
        meaning += f" for one of {last.per}"
    if first.exposure:
        meaning += f" for one unit of {first.exposure}; multiply by it where a row has more or less"
    return meaning


def _one_sided(file: Path) -> Iterator[str]:
    """Which side's columns a model of a run of joined sides goes by, where it is one side's."""
    if file.parent.name == "models" and file.stem in models.ONE_SIDED:
        yield f"by {file.name}: the model of the {file.stem}'s columns alone"


def _unknown(model: Model, rows: pd.DataFrame) -> Iterator[str]:
    """What the model was not trained on: levels it does not know, numbers that are missing."""
    for feature, levels, text in dict.fromkeys(_terms(model)):
        values = rows[feature.column]
        empty = int(values.isna().sum())
        if empty:
            how = "as missing" if hasattr(_bare(model), "cuts") else "as the base level or the mean"
            yield f"{feature.column}: missing in {empty:,} rows, which are scored {how}"
        if not text:
            continue
        new = values[values.notna() & ~values.isin(levels)].astype("str")
        if len(new):
            names = ", ".join(sorted(new.unique())[:SHOWN])
            yield (
                f"{feature.column}: {len(new):,} rows have a level that no training row had "
                f"({names}); the model scores them as an unknown level"
            )


def check_ending(out: Path) -> None:
    """Refuse a file that would be neither CSV nor Parquet, before there is anything to write."""
    if not out.name.endswith(ENDINGS):
        raise ConfigurationError(
            f"{out}: the name must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
        )


def write(frame: pd.DataFrame, out: Path) -> None:
    """Write the table by the file's ending, whole or not at all."""
    check_ending(out)
    draft = out.with_name(f".{secrets.token_hex(4)}-{out.name}")
    try:
        if out.suffix == ".parquet":
            frame.to_parquet(draft, index=False)
        else:
            frame.to_csv(draft, index=False)
        draft.replace(out)
    except OSError as error:
        raise ConfigurationError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        draft.unlink(missing_ok=True)
