"""What a search tries next: Optuna decides, and is told what came of it.

Akiba et al., "Optuna" (KDD 2019); tpe is Bergstra et al., "Algorithms for hyper-parameter
optimization" (NeurIPS 2011).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

from federated.study.settings import Choice, Span, Tune
from lab.errors import ConfigurationError

#: Values by dotted key of the experiment.
Settings = dict[str, Any]
#: Draws of random and tpe where the experiment says no number; points of a grid, at most.
DRAWS, LARGEST_GRID = 20, 10_000


class Proposals:
    """Settings to try, one after the other; each is told its score before the next is asked for.

    The same seed and the same scores give the same proposals; those of a grid, in the order of its
    file, and of random do not depend on scores.

    >>> tune = Tune.model_validate({"vary": {"model": {"depth": [2, 3]}}, "method": "grid"})
    >>> list(Proposals(tune, seed=1))
    [{'model.depth': 2}, {'model.depth': 3}]
    """

    def __init__(self, tune: Tune, seed: int) -> None:
        """Raises :class:`ConfigurationError` for a grid that is too large."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._vary = tune.vary
        of = optuna.samplers
        sampler = of.TPESampler(seed=seed) if tune.method == "tpe" else of.RandomSampler(seed)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._failed = optuna.trial.TrialState.FAIL
        self.count = tune.trials or DRAWS
        if tune.method == "grid":
            self.count = self._enqueue_grid()
        self._score: float | None = None

    def _enqueue_grid(self) -> int:
        """Have Optuna try every combination, in order. Returns how many there are."""
        lists = [range(len(values)) for values in self._vary.values() if isinstance(values, tuple)]
        if (count := prod(map(len, lists))) > LARGEST_GRID:
            raise ConfigurationError(
                f"tune.vary: a grid has at most {LARGEST_GRID:,} points, this one {count:,}; list "
                "fewer values, or set tune.method = 'random'"
            )
        for places in product(*lists):
            self._study.enqueue_trial(dict(zip(self._vary, places, strict=True)))
        return count

    def __iter__(self) -> Iterator[Settings]:
        for _ in range(self.count):
            draw = self._study.ask()
            yield {key: _value(draw, key, values) for key, values in self._vary.items()}
            if self._score is None:
                self._study.tell(draw, state=self._failed)
            else:
                self._study.tell(draw, self._score)
            self._score = None

    def tell(self, score: float | None) -> None:
        """The score of the settings that came last; None where they have none."""
        self._score = score


def _value(draw: Any, key: str, values: tuple[Choice, ...] | Span) -> Any:
    """The value of a key in one of Optuna's trials; of a list, Optuna chooses the place."""
    if isinstance(values, tuple):
        chosen = values[draw.suggest_categorical(key, range(len(values)))]
        return list(chosen) if isinstance(chosen, tuple) else chosen
    whole = isinstance(values.low, int) and isinstance(values.high, int)
    suggest = draw.suggest_int if whole else draw.suggest_float
    return suggest(key, values.low, values.high, log=values.log)
