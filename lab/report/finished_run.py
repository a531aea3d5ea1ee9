"""A finished run, read from its folder: its tables as DataFrames, and any study in one line or table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from lab.errors import ConfigurationError
from lab.models.files import Model
from lab.models.files import read as read_model
from lab.report.style import NAMES, Result
from lab.text import printable


class FinishedRun:
    """What a run found, under the names that it has in a `Study`, all of it DataFrames.

    ``result``: the whole of ``result.json``, for what is not a table.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises :class:`ConfigurationError` for a folder that holds no finished run."""
        self.folder = Path(folder)
        path = self.folder / "result.json"
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            self.name = str(result["experiment"]["name"])
            self.headline = str(result["headline"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigurationError(
                f"{folder}: no finished run is there; `lab runs` lists those that are"
            ) from None
        self.result: Result = result

    @property
    def scores(self) -> pd.DataFrame:
        """Scores by arm and party; ``all`` is the whole market's test rows."""
        rows = [
            {"arm": arm, "party": party, **scores}
            for arm, entry in self.result["arms"].items()
            for party, scores in entry["scores"].items()
        ]
        return indexed(rows)

    @property
    def coefficients(self) -> pd.DataFrame:
        """The coefficient tables of all GLM fits, one under the other."""
        return self._of_fits("coefficients")

    @property
    def relativities(self) -> pd.DataFrame:
        """By what factor each level and value of a feature multiplies, of all GLM fits."""
        return self._of_fits("relativities")

    def _of_fits(self, name: str) -> pd.DataFrame:
        tables = [
            pd.DataFrame(fit.get(name, [])).assign(part=part, arm=arm)
            for part, arm, fit in sorted(self._fits(), key=lambda each: each[0])
        ]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def _fits(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(part, arm or ``arm: party``, fit) of every GLM."""
        for arm, whole in self.result["arms"].items():
            for part, entry in whole.get("parts", {"model": whole}).items():
                if entry.get("fit"):
                    yield part, arm, entry["fit"]
                for party, fit in entry.get("fits", {}).items():
                    yield part, f"{arm}: {party}", fit

    @property
    def differences(self) -> pd.DataFrame:
        """Federated minus the other arms in the headline score, with 95 % bootstrap intervals."""
        return pd.DataFrame(self.result["differences"])

    @property
    def joining(self) -> pd.DataFrame:
        """What each party and the others lose when it stays away."""
        return pd.DataFrame(self.result["joining"])

    @property
    def worth(self) -> pd.DataFrame:
        """What the federated detector saves and finds at the budget more than each arm of less."""
        return pd.DataFrame(self.result.get("worth", []))

    @property
    def convergence(self) -> pd.DataFrame:
        """Deviance (or loss) after each step or round, by arm, holder and part."""
        return pd.DataFrame(self.result["convergence"])

    @property
    def receipt(self) -> pd.DataFrame:
        """What left each party in the federated arm, by statistic."""
        return pd.DataFrame(self.result["receipt"])

    @property
    def opened(self) -> pd.DataFrame:
        """What of the totals was told to others than whoever opens them, by statistic."""
        return pd.DataFrame(self.result["opened"])

    @property
    def answers(self) -> list[pd.DataFrame]:
        """The answer to each question; its ``attrs`` hold the title, the SQL and what is hidden."""
        tables = []
        for answer in self.result["answers"]:
            table = pd.DataFrame(answer["rows"], columns=answer["columns"])
            table.attrs = {k: v for k, v in answer.items() if k not in ("rows", "columns")}
            tables.append(table)
        return tables

    def model(self, name: str = "federated") -> Model:
        """A model of the run, by its file's name: ``federated``, ``pooled``, ``alone-insurer-1``.

        Raises :class:`ConfigurationError` where there is none of this name.
        """
        path = self.folder / "models" / f"{name}.json"
        if not path.exists():
            names = sorted(p.stem for p in path.parent.glob("*.json"))
            raise ConfigurationError(
                f"{self.folder}: no model '{name}'; there are {', '.join(names) or 'none'}"
            )
        return read_model(path)

    def __repr__(self) -> str:
        return line(self)

    def _repr_html_(self) -> str:
        return html(self)


def indexed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Scores by arm and party, of which there may be none."""
    index = ["arm", "party"]
    return pd.DataFrame(rows, columns=None if rows else index).set_index(index)


class ScoredStudy(Protocol):
    """A study, or a finished run."""

    folder: Any

    @property
    def name(self) -> str:
        """The experiment's."""

    @property
    def headline(self) -> str:
        """The score that arms are compared by."""

    @property
    def scores(self) -> pd.DataFrame:
        """By arm and party."""


def by_party(study: ScoredStudy) -> pd.DataFrame:
    """The headline score, a row for each party and a column for each arm, as they come."""
    scores = study.scores.get(study.headline)
    if scores is None:
        return pd.DataFrame()
    arms, parties = (scores.index.unique(level) for level in ("arm", "party"))
    return pd.DataFrame({arm: scores.loc[arm] for arm in arms}).reindex(parties)


def line(study: ScoredStudy) -> str:
    """A study or a finished run in one line."""
    name, place = printable(study.name), f"; {study.folder}" if study.folder else ""
    whole = by_party(study).reindex(["all"]).iloc[0].dropna()
    values = ", ".join(f"{arm} {value:.4f}" for arm, value in whole.items())
    return f"<{name}: {NAMES[study.headline]} {values or 'not told'}{place}>"


def html(study: ScoredStudy) -> str:
    """A study or a finished run as a notebook shows it."""
    table = by_party(study).rename(index={"all": "whole market"})
    table.index = table.index.map(printable)
    heading = f"<b>{escape(printable(study.name))}</b>, {NAMES[study.headline]}"
    text = table.rename_axis(index=None, columns=None).to_html(float_format="{:.4f}".format)
    place = escape(printable(str(study.folder))) if study.folder else ""
    return f"<p>{heading}</p>{text}<p><small>{place}</small></p>"
