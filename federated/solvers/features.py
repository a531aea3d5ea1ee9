"""What a feature of an experiment may be, by the contract and the kind of model."""

from __future__ import annotations

from federated.solvers.encoding import is_category
from lab.errors import ConfigurationError
from lab.models.design import Feature
from lab.records import nearest
from lab.tables.contracts import Contract
from lab.tables.values import DECIMAL


def check_feature(
    feature: Feature, contract: Contract, others: set[str], exposure: str | None, kind: str
) -> None:
    """Raises ConfigurationError for a feature that can't be one. others: columns of the target, the
    weight and so on; exposure: which may be an input beside the offset; kind: of model."""
    name = feature.column
    if name not in contract.columns:
        near = nearest(name, list(contract.columns))
        hint = f"; did you mean '{near}'?" if near else ""
        raise ConfigurationError(f"data.features: there is no column '{name}'{hint}")
    column = contract.columns[name]
    beside = name == exposure
    if name in others and not beside:
        raise ConfigurationError(
            f"data.features: '{name}' is the target, weight or person and cannot be a feature"
        )
    if column.role != "feature" and not beside:
        raise ConfigurationError(
            f"data.features: '{name}' has the role '{column.role}' in contract {contract.name}"
        )
    curved = feature.knots is not None
    if column.type == "category" and (feature.log or feature.cut or curved):
        raise ConfigurationError(
            f"data.features: '{name}' is a category; log, cut, spline and pieces are for numbers"
        )
    if kind == "glm":
        _check_base(feature, contract)
        _check_order(feature, contract)
        return
    for key in ("spline", "pieces", "base", "smooth", "monotone"):
        if getattr(feature, key) is not None:
            raise ConfigurationError(
                f"data.features: '{name}' has {key}, which a GLM takes; drop it for {kind}"
            )


def _check_base(feature: Feature, contract: Contract) -> None:
    """A level where the feature has levels, a value where it is a number."""
    base, levels = feature.base, contract.columns[feature.column].levels
    where = f"data.features: base of '{feature.column}'"
    if base is None:
        return
    if feature.ordinal:
        if base not in (levels or ()):
            raise ConfigurationError(
                f"{where} must be one of {', '.join(levels or ())}, got {base!r}"
            )
    elif isinstance(base, str) and not is_category(feature, contract):
        raise ConfigurationError(f"{where} must be a number, got {base!r}")
    elif feature.log and float(base) <= 0:
        raise ConfigurationError(
            f"{where} must be above 0 where its logarithm is taken, got {base:g}"
        )


def _check_order(feature: Feature, contract: Contract) -> None:
    """Levels that are smoothed, or that rise, need an order: intervals, or numbers."""
    if feature.smooth is None and feature.monotone is None:
        return
    column = contract.columns[feature.column]
    if feature.cut is not None or (feature.category and column.type != "category"):
        return
    if is_category(feature, contract) and column.levels and all(map(_is_number, column.levels)):
        return
    raise ConfigurationError(
        f"data.features: '{feature.column}' has no levels in an order to smooth or to let rise; give cut points, "
        "or take the values of a number as levels (category = true)"
    )


def _is_number(level: str) -> bool:
    return DECIMAL.fullmatch(level) is not None
