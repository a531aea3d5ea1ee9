"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path

import click

RUNS = click.option(
    "--runs",
    default="runs",
    envvar="LAB_RUNS",
    type=click.Path(path_type=Path),
    show_default=True,
    help="Folder that keeps runs and MLflow's database.",
)


WITHOUT = click.option(
    "--without", multiple=True, metavar="NAME", help="With real parties: an insurer not to ask."
)


TRACKING = click.option(
    "--tracking-uri",
    help="MLflow server; default MLFLOW_TRACKING_URI, else SQLite in the runs folder.",
)


def changed(changes: tuple[str, ...]) -> dict[str, str]:
    """The keys and values of ``--set``."""
    return dict(map(_pair, changes))


def _pair(change: str) -> tuple[str, str]:
    from lab.errors import ConfigurationError

    key, equals, value = change.partition("=")
    if not equals:
        raise ConfigurationError(f"--set {change}: needs the form key=value, as model.ridge=0.1")
    return key.strip(), value.strip()
