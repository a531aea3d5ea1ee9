"""What a study found: models, scores, receipts, as records and as DataFrames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from federated.joined.side import CUTS
from federated.party.state import Released
from federated.solvers import glm
from federated.study.experiment import Experiment
from federated.study.rows import StudiedMarket
from federated.study.scoring import Evaluation, scored
from federated.study.settings import SIDES, Arm, Detection, Query
from lab.models.files import digest, terms_of
from lab.models.profile import Profile, Profiled
from lab.privacy.joining import Opened, by_statistic
from lab.report import finished_run
from lab.scores import accuracy as scoring
from lab.scores import detection, worth

#: A difference in deviance explained that is rounding, not a difference.
NOTHING = 1e-9
#: A model is out of balance beyond this; names of a list that are printed.
UNBALANCED, SHOWN = 0.05, 12


@dataclass(frozen=True)
class Fitted:
    """One model of one arm, with its record. ``fit`` is None for a network."""

    model: Any
    fit: glm.Fit | None
    trace: pd.DataFrame  # step, deviance (or loss)
    profiles: tuple[Profile, ...] = ()

    @property
    def file(self) -> str:
        """The model as it is kept: with the profiles that its features come from."""
        if not self.profiles:
            return self.json
        whole = Profiled(profiles=self.profiles, model=self.model)
        return whole.model_dump_json()

    @property
    def json(self) -> str:
        return str(self.model.model_dump_json())

    @property
    def hash(self) -> str:
        return digest(self.file)


@dataclass
class ArmResult:
    """An arm: its models (one, or one for each party), its scores, what went wrong, its time."""

    name: Arm
    models: dict[str, dict[str, Fitted]] = field(default_factory=dict)  # holder -> part -> model
    failures: dict[str, str] = field(default_factory=dict)  # holder -> why there is no model
    notes: dict[str, str] = field(default_factory=dict)  # holder -> what to know of its model
    evaluations: dict[str, dict[str, Evaluation]] = field(default_factory=dict)  # part -> holder
    others: dict[str, Evaluation] = field(default_factory=dict)  # holder -> on all rows but its own
    opened: tuple[Opened, ...] = ()  # what was told to others than whoever opens totals
    seconds: float = 0.0


@dataclass(repr=False)
class Study:
    """What a run found. Tables come as DataFrames; ``folder`` and ``tracking`` once it is kept."""

    experiment: Experiment
    market: StudiedMarket
    arms: dict[str, ArmResult]
    receipts: dict[str, list[Released]]
    seconds: dict[str, float]
    silent: list[tuple[str, str]] = field(default_factory=list)  # (party, message) unanswered
    answers: list[tuple[Query, pd.DataFrame]] = field(default_factory=list)
    not_run: tuple[Arm, ...] = ()  # arms of the experiment that real parties have no rows for
    unanswered: str = ""  # why real parties did not answer the questions
    run: str = ""  # its name in the parties' logs, where the parties are real
    outlook: list[Any] = field(default_factory=list)  # who took part, where they are
    evidence: Mapping[str, bytes] = field(
        default_factory=dict
    )  # files that real parties' logs bind
    folder: Any = None
    tracking: str | None = None

    def __repr__(self) -> str:
        return finished_run.line(self)

    def _repr_html_(self) -> str:
        return finished_run.html(self)

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def part(self) -> str:
        """The part that the headline scores belong to."""
        return "pure premium" if "severity" in self.experiment.tasks() else "model"

    @property
    def parts(self) -> tuple[str, ...]:
        tasks = tuple(self.experiment.tasks())
        return (*tasks, "pure premium") if "severity" in tasks else tasks

    def table(self, part: str | None = None) -> pd.DataFrame:
        """Scores by arm and party; ``all`` is the whole market's test rows."""
        rows = [
            {"arm": arm.name, "party": holder, **self.scored(evaluation)}
            for arm in self.arms.values()
            for holder, evaluation in arm.evaluations.get(part or self.part, {}).items()
        ]
        return finished_run.indexed(rows)

    def scored(self, evaluation: Evaluation) -> dict[str, Any]:
        """All scores of an evaluation by name; those of a detector among them."""
        return scored(self.experiment, evaluation)

    @property
    def headline(self) -> str:
        """The score that arms are compared by."""
        return self.experiment.headline

    @property
    def scores(self) -> pd.DataFrame:
        return self.table()

    def fits(self, part: str) -> dict[str, glm.Fit]:
        """GLM fits of one part by arm, or ``alone: party``."""
        fits = {}
        for arm in self.arms.values():
            for holder, models in arm.models.items():
                fitted = models.get(part)
                if fitted is not None and fitted.fit is not None:
                    fits[arm.name if holder == "all" else f"{arm.name}: {holder}"] = fitted.fit
        return fits

    @property
    def coefficients(self) -> pd.DataFrame:
        """The coefficient tables of all GLM fits, one under the other."""
        return self._of_fits(glm.Fit.coefficients)

    @property
    def relativities(self) -> pd.DataFrame:
        """By what factor each level and value of a feature multiplies, of all GLM fits."""
        return self._of_fits(glm.Fit.relativities)

    def _of_fits(self, table: Callable[[glm.Fit], pd.DataFrame]) -> pd.DataFrame:
        tables = [
            table(fit).assign(part=part, arm=arm)
            for part in self.experiment.tasks()
            for arm, fit in self.fits(part).items()
        ]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    @property
    def convergence(self) -> pd.DataFrame:
        """Deviance (or loss) after each step or round, by arm, holder and part."""
        traces = [
            fitted.trace.assign(arm=arm.name, holder=holder, part=part)
            for arm in self.arms.values()
            for holder, models in arm.models.items()
            for part, fitted in models.items()
            if len(fitted.trace)
        ]
        return pd.concat(traces, ignore_index=True) if traces else pd.DataFrame()

    @property
    def differences(self) -> pd.DataFrame:
        """Federated minus the other arms in the headline score, with 95 % bootstrap intervals."""
        rows: list[dict[str, Any]] = []
        ours = self.arms.get("federated")
        if ours is None or not self.experiment.arms.replicates or self.market.in_sample:
            return pd.DataFrame(rows)  # rows that both were fitted on judge neither
        for other in self.arms.values():
            for holder, evaluation in other.evaluations.get(self.part, {}).items():
                mine = ours.evaluations[self.part].get(holder)
                if other is not ours and mine is not None and _same_rows(mine, evaluation):
                    interval = _difference(mine, evaluation)
                    change, low, high = (0.0 if abs(v) < NOTHING else v for v in interval)
                    row = {"against": other.name, "party": holder}
                    rows.append(row | {"difference": change, "low": low, "high": high})
        return pd.DataFrame(rows)

    @property
    def joining(self) -> pd.DataFrame:
        """What each party and the others lose when it stays away: the headline score on its rows
        and on theirs, of the federated model and of the one without it."""
        whole, without = self.arms.get("federated"), self.arms.get("without")
        if whole is None or without is None or self.market.in_sample:
            return pd.DataFrame()
        rows = []
        for holder, theirs in without.others.items():
            own = whole.evaluations[self.part][holder], without.evaluations[self.part][holder]
            pairs = {"own_rows": own, "others_rows": (whole.others[holder], theirs)}
            row: dict[str, Any] = {"party": holder}
            for place, (with_all, away) in pairs.items():
                row[f"{place}_federated"] = self.scored(with_all)[self.headline]
                row[f"{place}_without"] = self.scored(away)[self.headline]
                change, low, high = _difference(with_all, away)
                row |= {f"{place}_gain": change, f"{place}_low": low, f"{place}_high": high}
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def worth(self) -> pd.DataFrame:
        """What the federated detector saves and finds at the budget more than each arm of less: net
        savings of each party, then of each kind of fraud the share found and the amount saved, with
        95 % bootstrap intervals."""
        ours, settings = self.arms.get("federated"), self.experiment.detection
        if ours is None or settings is None or self.market.in_sample:
            return pd.DataFrame()
        rows = [
            (name, party, *line)
            for name in ("alone", *SIDES)
            if name in self.arms
            for party, other in self.arms[name].evaluations[self.part].items()
            if _same_rows(mine := ours.evaluations[self.part][party], other)
            for line in _brought(settings, mine, other, by_kind=party == "all")
        ]
        columns = ["against", "party", "kind", "measure", "difference", "low", "high"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def judged(self) -> str:
        """Which rows the scores are of."""
        return "in sample" if self.market.in_sample else "on test rows"

    @property
    def notices(self) -> list[str]:
        """What is to know beside the scores, a line each, as it is printed."""
        lines = list(self.market.by_contract)
        for part, features in self.market.features.items():
            of = "" if part == "model" else f" of {part}"
            lines.append(f"features{of}: {_listed([f.name for f in features])}")
        if self.market.unused:
            reasons = [f"{_listed(names)} {why}" for why, names in _by_value(self.market.unused)]
            lines.append(f"not used: {'; '.join(reasons)}")
        lines += self._dropped()
        if self.market.in_sample:
            lines.append("scores are in sample: of the rows that the models were fitted on")
        for name, arm in self.arms.items():
            for part, evaluations in arm.evaluations.items():
                most = 0.0 if part == "pure premium" else UNBALANCED
                if (text := _unbalanced(evaluations.get("all"), most)) is not None:
                    lines.append(
                        f"{name}{'' if part == 'model' else ', ' + part}: {text} {self.judged}"
                    )
        return [*lines, *self._cuts_told(), *self._other_measures()]

    def _cuts_told(self) -> list[str]:
        """What the fund told of its columns while trees grew."""
        told = [line for of in self.receipts.values() for line in of if line.statistic == CUTS]
        if not told:
            return []
        cuts, bits = (sum(getattr(line, name) for line in told) for name in ("arrays", "values"))
        return [
            f"{cuts} cuts on the fund's columns were told to the insurers, one bit each for "
            f"{max(line.rows for line in told):,} persons: {bits:,} bits"
        ]

    def _dropped(self) -> list[str]:
        """Features of an arm's one model that never vary and were left out."""
        lines = []
        for name, arm in self.arms.items():
            if name in SIDES:  # which have their own columns alone
                continue
            for part, features in self.market.features.items():
                fitted = arm.models.get("all", {}).get(part)
                read = {term.feature for term in terms_of(fitted.model)} if fitted else features
                names = [f.name for f in features if f not in read]
                if fitted and fitted.fit and fitted.fit.drawn:
                    lines.append(f"{name}: {fitted.fit.drawn}")
                if names:
                    lines.append(
                        f"{name}: left out, the same in all training rows but few: {_listed(names)}"
                    )
        return lines

    def _other_measures(self) -> list[str]:
        """Scores against the parties' own rates, and in the measure in which frequencies are often
        published."""
        lines = []
        if (ours := self.arms.get("federated")) and self.headline == "deviance_explained":
            own = _values(self._scores_of(ours, self.part), "deviance_explained_of_own_rate")
            lines += [f"federated, against each party's own rate: {_listed(own)}"] if own else []
        whole = {
            name: scores["all"]
            for name, arm in self.arms.items()
            if "all" in (scores := self._scores_of(arm, self.parts[0]))
        }
        if values := _values(whole, "deviance_explained_of_counts"):
            lines.append(
                "deviance of counts explained, exposure as weight, against a constant count "
                f"(scikit-learn's d2_tweedie_score): {', '.join(values)}"
            )
        return lines

    def _scores_of(self, arm: ArmResult, part: str) -> dict[str, dict[str, Any]]:
        """An arm's scores of a part by holder."""
        return {holder: self.scored(e) for holder, e in arm.evaluations.get(part, {}).items()}

    @property
    def opened(self) -> list[Opened]:
        """What of the totals was told to others than whoever opens them: of models, then of
        questions."""
        models = self.arms["federated"].opened if "federated" in self.arms else ()
        questions = [line for _, answer in self.answers for line in answer.attrs["opened"]]
        return [*models, *by_statistic(Opened(**line) for line in questions)]

    @property
    def receipt(self) -> pd.DataFrame:
        """What left each party in the federated arm, by statistic."""
        lines = [
            {"party": party, **vars(line)}
            for party, lines_of_party in self.receipts.items()
            for line in lines_of_party
        ]
        if not lines:
            return pd.DataFrame()
        grouped = pd.DataFrame(lines).groupby(["party", "statistic", "hiding"], sort=False)
        return grouped.agg(
            messages=("query", "size"),
            arrays=("arrays", "sum"),
            values=("values", "sum"),
            bytes=("bytes", "sum"),
            rows=("rows", "max"),
            key_bits=("key_bits", "max"),
        ).reset_index()


def _same_rows(one: Evaluation, other: Evaluation) -> bool:
    return one.fit.total("rows") == other.fit.total("rows")


def _brought(
    settings: Detection, model: Evaluation, other: Evaluation, *, by_kind: bool
) -> Iterator[tuple[Any, ...]]:
    """(kind, measure, difference, low, high) of what a detector brings more than another."""
    one, two, kind = model.detected, other.detected, settings.typology
    assert one is not None and two is not None  # as the experiment has [detection]
    if settings.amount:
        cost = settings.investigation_cost
        net = worth.net_difference(one.rank, two.rank, settings.budget, investigation_cost=cost)
        yield None, "net", *net
    if by_kind and kind:
        names, sums = one.groups[kind]
        yield from worth.found_differences(sums, two.groups[kind][1], names).itertuples(index=False)


def _unbalanced(evaluation: Evaluation | None, most: float) -> str | None:
    """What to say of a model whose total is off by more than this share."""
    if evaluation is None or not evaluation.fit["actual"][0] > 0:
        return None
    ratio, low, high = scoring.balance(evaluation.fit)
    if abs(ratio - 1) <= most:
        return None
    interval = f" (95 % interval {low:.3f} to {high:.3f})" if low == low else ""
    return f"expects {ratio:.3f} times the actual total{interval}"


def _by_value(reasons: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Names by their reason, in the order in which reasons come."""
    return [
        (why, [name for name, each in reasons.items() if each == why])
        for why in dict.fromkeys(reasons.values())
    ]


def _values(scores: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    """One score of each that has it, after its name."""
    return [f"{name} {each[key]:.4f}" for name, each in scores.items() if key in each]


def _listed(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _difference(model: Evaluation, other: Evaluation) -> tuple[float, float, float]:
    """(difference, low, high) in average precision of detectors, else in deviance explained."""
    if model.detected is not None and other.detected is not None:
        return detection.difference(model.detected.rank, other.detected.rank)
    return scoring.interval(model.fit, other.fit)


def with_names(answer: pd.DataFrame) -> pd.DataFrame:
    """The answer with the names of its rows as a column, where they have names, as in a matrix."""
    has_names = not isinstance(answer.index, pd.RangeIndex)
    return answer.rename_axis("").reset_index() if has_names else answer
