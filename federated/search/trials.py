"""Experiments that differ from one in a few keys, and the refusal of what can't be one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from federated.search.proposals import Proposals, Settings
from federated.study.experiment import Experiment
from federated.study.settings import Tune
from lab.errors import ConfigurationError
from lab.records import parse, set_key


def written(experiment: Experiment, settings: Settings) -> dict[str, Any]:
    """The tables of an experiment's file, as they were written, with other settings, without what
    is searched."""
    values = experiment.model_dump(mode="json", exclude_unset=True)
    values.pop("tune", None)
    for key, value in settings.items():
        set_key(values, key, value)
    return values


def varied(experiment: Experiment, settings: Settings, where: str) -> Experiment:
    """An experiment with other settings. Raises ConfigurationError that begins with ``where``."""
    trial = parse(Experiment, written(experiment, settings), where=where)
    try:
        trial.check()
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    return trial


def values_of(experiment: Experiment, keys: Iterator[str] | tuple[str, ...]) -> Settings:
    """What an experiment has at dotted keys, defaults among them; without keys that it has not."""
    whole, settings = experiment.model_dump(mode="json"), {}
    for key in keys:
        value: Any = whole
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            settings[key] = value
    return settings


def words(settings: Settings) -> str:
    """Settings on one line.

    >>> words({"model.depth": 3, "model.l2": 0.123456789})
    'model.depth = 3, model.l2 = 0.123457'
    """
    return ", ".join(f"{key} = {in_short(value)}" for key, value in settings.items())


def in_short(value: Any) -> str:
    """A value as people read it, numbers to six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def check_trials(experiment: Experiment, tune: Tune) -> None:
    """Refuse, before anything runs, a value that no trial can have, by the trial it belongs to.

    Of a grid and of random draws every trial is looked at; of tpe every listed value and both ends
    of each range, with the others as they stand first.
    """
    for number, settings in enumerate(_foreseen(tune, experiment.seed), start=1):
        where = f"tune.vary, trial {number} ({words(settings)})"
        trial = varied(experiment, settings, where)
        if _measure(trial) != _measure(experiment):
            raise ConfigurationError(
                f"{where}: scores of another family or target are in another measure and can't be "
                "compared; drop model.family, model.power and model.severity from [tune.vary]"
            )


def _foreseen(tune: Tune, seed: int) -> Iterator[Settings]:
    if tune.method != "tpe":
        yield from Proposals(tune, seed)
        return
    ends = {
        key: list(values) if isinstance(values, tuple) else [values.low, values.high]
        for key, values in tune.vary.items()
    }
    first = {key: values[0] for key, values in ends.items()}
    for key, values in ends.items():
        yield from (first | {key: value} for value in values)


def _measure(experiment: Experiment) -> list[tuple[str, ...]]:
    """What the scores of an experiment are of."""
    laws = {part: (task.target, task.law) for part, task in experiment.all_tasks().items()}
    return [(part, target, law.name, f"{law.power}") for part, (target, law) in laws.items()]
