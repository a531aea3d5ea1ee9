"""Carrying a plan out: profiles, models, scores, from totals alone; and its outcome as it travels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, TypeAdapter

from federated.federation import ModelTotals
from federated.solvers.encoding import totals_of
from federated.solvers.glm import Fit
from federated.solvers.kinds import solver_of
from federated.solvers.solution import Solution, Watch
from federated.study.experiment import Experiment
from federated.study.plan import StudyPlan
from federated.study.result import Fitted
from federated.study.rows import Features
from federated.study.run_folder import plain
from federated.study.scoring import ByLevel, Detected, Evaluation, Scorer, scored
from federated.study.steps import near
from lab.errors import ConfigurationError, PeerError
from lab.files import canonical
from lab.models import files as models
from lab.models.families import Scale
from lab.models.files import Product
from lab.models.profile import Profile
from lab.privacy.joining import PERSONS, Least, Opened, by_statistic
from lab.scores.explanation import Explained
from lab.scores.interaction import Interaction
from lab.scores.local_effects import LocalEffects
from lab.sums import Limit, Sums
from lab.tables.contracts import Contract


@dataclass(frozen=True)
class Outcome:
    """What a plan comes to: the model of each part, the means they are measured against, the totals
    on all parties' test rows that they are judged by, the scores that follow from these, and what
    was opened for all of it."""

    models: dict[str, Fitted]
    constants: dict[str, Scale]
    evaluations: dict[str, Evaluation]
    scores: dict[str, dict[str, Any]]
    opened: tuple[Opened, ...] = ()

    @property
    def texts(self) -> dict[str, str]:
        """The model of each part as it travels."""
        return {part: fitted.json for part, fitted in self.models.items()}

    @property
    def scorecard(self) -> bytes:
        """The hash of each part's model, its scores, and what was opened: what logs vouch for."""
        hashes = {part: fitted.hash for part, fitted in self.models.items()}
        openings = [vars(line) for line in self.opened]
        return canonical({"models": hashes, "scores": self.scores, "opened": openings})

    def agrees_with(self, other: Outcome) -> bool:
        """Whether both have the same models, means and scores of the same openings, but for what
        rounds between machines."""
        texts, others = self.texts, other.texts
        return (
            texts.keys() == others.keys()
            and all(near(json.loads(texts[part]), json.loads(others[part])) for part in texts)
            and near(_constants_out(self.constants), _constants_out(other.constants))
            and near(self.scores, other.scores)
            and self.opened == other.opened
        )

    def to_bytes(self) -> bytes:
        """As it leaves whoever carried the plan out."""
        return canonical(
            {
                "models": [[part, _fitted_out(fitted)] for part, fitted in self.models.items()],
                "constants": _constants_out(self.constants),
                "evaluations": [[k, _evaluation_out(v)] for k, v in self.evaluations.items()],
                "scores": self.scores,
                "opened": [list(vars(one).values()) for one in self.opened],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Outcome:
        """Raises :class:`PeerError` for what is no outcome."""
        try:
            record = json.loads(data)
            return cls(
                {part: _fitted_in(each) for part, each in record["models"]},
                {part: Scale.model_validate(each) for part, each in record["constants"].items()},
                {part: _evaluation_in(each) for part, each in record["evaluations"]},
                {str(part): dict(each) for part, each in record["scores"].items()},
                tuple(_OPENED.validate_python(record["opened"])),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise PeerError(f"the outcome is not readable: {type(error).__name__}") from None


def carry_out(plan: StudyPlan, federation: ModelTotals, watch: Watch | None = None) -> Outcome:
    """Ask the questions of a plan and make of the totals what it is for.

    1. Profiles of providers, released by the plan's rules. 2. The model of each part. 3. The mean
    of all training rows, for the model that explains nothing. 4. Scores on all test rows.
    """
    experiment = plan.experiment
    if federation.everybody and experiment.detection is not None:
        raise ConfigurationError(
            "[detection]: a ranking is judged in bins, some of few persons, and here all parties see "
            "every total; use protection.sums = 'paillier' with protection.key = 'authority'"
        )
    if federation.everybody and experiment.explain and experiment.explain.local:
        raise ConfigurationError(
            "explain.local: effects stand on intervals, some of few persons, and here all parties see every "
            "total; drop it, or use protection.sums = 'paillier' with protection.key = 'authority'"
        )
    federation.least_parties = plan.least_parties
    profiles = [federation.profile(cells, plan.rules) for cells in plan.cells]
    fitted = fit_models(
        experiment, plan.features, plan.joined, federation, watch, profiles=profiles
    )
    fits = {part: each.fit for part, each in fitted.items() if each.fit is not None}
    constants = {
        part: fits[part].scale if part in fits else Scale.of(totals_of(federation, task))
        for part, task in experiment.all_tasks().items()
    }
    least = Least(plan.rules.minimum_count.persons, plan.least_parties)
    scorer = Scorer(experiment, constants, plan.by_level, plan.groups, {}, least)
    texts = {part: each.json for part, each in fitted.items()}
    evaluations = {part: each["all"] for part, each in scorer.shared(texts, federation).items()}
    scores = {part: plain(scored(experiment, each)) for part, each in evaluations.items()}
    federation.opened.append(Opened("totals", 5 * len(constants)))
    for evaluation in evaluations.values():
        federation.opened.extend(_told(evaluation))
    return Outcome(fitted, constants, evaluations, scores, tuple(by_statistic(federation.openings)))


def _constants_out(constants: Mapping[str, Scale]) -> dict[str, Any]:
    return {part: each.model_dump() for part, each in constants.items()}


def _told(evaluation: Evaluation) -> Iterator[Opened]:
    """What an evaluation tells, after its cells of few persons were joined."""
    for each in evaluation.explained.values():
        yield Opened("explain_partial", len(each.expected))
        yield Opened("explain_shuffled", _size(each.shuffled))
        if each.local is not None:
            effects = each.local.sums
            yield Opened.cells("explain_local", _size(effects), effects[PERSONS])
    for pair in evaluation.pairs:
        yield Opened("explain_grid", pair.told)
        yield Opened("explain_excess", 3)
    cells = [("score_lorenz", evaluation.lorenz)]
    cells += [("score_levels", sums) for _, sums in evaluation.levels.values()]
    if evaluation.detected is not None:
        cells.append(("detection_rank", evaluation.detected.rank))
        groups = evaluation.detected.groups.values()
        cells += [("detection_groups", sums) for _, sums in groups]
    yield Opened("score_fit", _size(evaluation.fit))
    for statistic, sums in cells:
        if sums is not None:
            yield Opened.cells(statistic, _size(sums), sums[PERSONS])


def _size(sums: Sums) -> int:
    return sum(array.size for array in sums.arrays.values())


def fit_models(
    experiment: Experiment,
    features: Features,
    contract: Contract,
    federation: ModelTotals,
    watch: Watch | None = None,
    left_out: list[str] | None = None,
    profiles: Sequence[Profile] = (),
) -> dict[str, Fitted]:
    """Fit every part of an experiment's model with this federation.

    A column that never varies is left out, and named in ``left_out`` where there is such a list; it
    is an error where there is none and the experiment refuses such columns.
    """
    if left_out is None and experiment.data.constant == "drop":
        left_out = []
    federation.join(profiles)
    digests = tuple(profile.digest for profile in profiles)
    solve: Callable[..., Solution] = solver_of(experiment.model.kind).solve
    fitted: dict[str, Fitted] = {}
    for part, task in experiment.tasks().items():
        solution = solve(
            federation,
            task.model_copy(update={"profiles": digests}),
            features[part],
            contract,
            experiment.model,
            experiment.seed,
            watch,
            left_out,
        )
        fitted[part] = Fitted(solution.model, solution.fit, solution.trace, tuple(profiles))
    if "severity" in fitted:
        product = Product(frequency=fitted["frequency"].model, severity=fitted["severity"].model)
        fitted["pure premium"] = Fitted(product, None, pd.DataFrame())
    return fitted


# As text and back.

#: Arrays of a GLM's fit.
_ERRORS = ("errors", "contrast_errors")


def _fitted_out(fitted: Fitted) -> dict[str, Any]:
    fit = fitted.fit
    record = {name: value for name, value in vars(fit).items() if name != "model"} if fit else None
    if record is not None:
        record |= {name: plain(record[name].tolist()) for name in _ERRORS}
        record |= {"scale": record["scale"].model_dump()}
    trace = fitted.trace.replace({np.nan: None}).astype(object)
    return {
        "file": fitted.file,
        "fit": record,
        "trace": {"columns": list(trace.columns), "rows": trace.to_numpy().tolist()},
    }


def _fitted_in(record: Mapping[str, Any]) -> Fitted:
    whole: Any = models.from_json(record["file"])
    profiles = getattr(whole, "profiles", ())
    model = whole.model if profiles else whole
    fit = record["fit"]
    if fit is not None:
        steps = tuple((float(deviance), float(step)) for deviance, step in fit["trace"])
        arrays = {name: np.array(fit[name], dtype=np.float64) for name in _ERRORS}
        scale = Scale.model_validate(fit["scale"])
        path = tuple((float(alpha), float(deviance)) for alpha, deviance in fit["path"])
        own = {**arrays, "trace": steps, "path": path, "scale": scale}
        fit = Fit(model=model, **{**fit, **own})
    trace = pd.DataFrame(record["trace"]["rows"], columns=record["trace"]["columns"])
    return Fitted(model, fit, trace.apply(pd.to_numeric), tuple(profiles))


def _sums_out(sums: Sums) -> dict[str, Any]:
    arrays = {name: [array.shape, array.ravel().tolist()] for name, array in sums.arrays.items()}
    limits = {name: [limit.bound, limit.resolution] for name, limit in sums.limits.items()}
    return {"arrays": arrays, "limits": limits, "rows": sums.rows}


def _sums_in(record: Mapping[str, Any]) -> Sums:
    arrays = {
        name: np.array(values, dtype=np.float64).reshape(shape)
        for name, (shape, values) in record["arrays"].items()
    }
    limits = {name: Limit(*pair) for name, pair in record["limits"].items()}
    return Sums(arrays, limits, int(record["rows"]))


def _levels_out(levels: ByLevel) -> list[Any]:
    return [[name, list(names), _sums_out(sums)] for name, (names, sums) in levels.items()]


def _levels_in(lines: Sequence[Any]) -> ByLevel:
    return {name: (tuple(map(str, names)), _sums_in(sums)) for name, names, sums in lines}


_OPENED = TypeAdapter(list[Annotated[Opened, BeforeValidator(lambda line: Opened(*line))]])


def _evaluation_out(evaluation: Evaluation) -> dict[str, Any]:
    detected = evaluation.detected
    return {
        "fit": _sums_out(evaluation.fit),
        "lorenz": evaluation.lorenz and _sums_out(evaluation.lorenz),
        "levels": _levels_out(evaluation.levels),
        "detected": detected
        and {"rank": _sums_out(detected.rank), "groups": _levels_out(detected.groups)},
        "explained": [
            [column, *_explained_out(each)] for column, each in evaluation.explained.items()
        ],
        "pairs": [plain(list(vars(pair).values())) for pair in evaluation.pairs],
    }


def _evaluation_in(record: Mapping[str, Any]) -> Evaluation:
    detected = record["detected"]
    return Evaluation(
        _sums_in(record["fit"]),
        record["lorenz"] and _sums_in(record["lorenz"]),
        _levels_in(record["levels"]),
        detected and Detected(_sums_in(detected["rank"]), _levels_in(detected["groups"])),
        explained={str(column): _explained_in(line) for column, *line in record["explained"]},
        pairs=tuple(_pair_in(*line) for line in record["pairs"]),
    )


def _explained_out(each: Explained) -> list[Any]:
    local = each.local
    effects = local and [list(local.edges), _sums_out(local.sums)]
    return [list(each.values), list(each.expected), _sums_out(each.shuffled), effects]


def _explained_in(line: Sequence[Any]) -> Explained:
    values, expected, shuffled, effects = line
    local = effects and LocalEffects(_values_in(effects[0]), _sums_in(effects[1]))
    rates = tuple(float(rate) for rate in expected)
    return Explained(_values_in(values), rates, _sums_in(shuffled), local or None)


def _values_in(values: Sequence[Any]) -> tuple[float | str, ...]:
    return tuple(v if isinstance(v, str) else float(v) for v in values)


def _pair_in(columns: Sequence[str], told: int, *shares: float | None) -> Interaction:
    one, other = map(str, columns)
    share, low, high = (math.nan if each is None else float(each) for each in shares)
    return Interaction((one, other), int(told), share, low, high)
