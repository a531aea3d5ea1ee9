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
    return pairs(changes, "--set ", "model.ridge=0.1")


def pairs(
    texts: tuple[str, ...], where: str = "", example: str = "provider=1060"
) -> dict[str, str]:
    """The keys and values of texts of the form key=value."""
    return dict(_pair(text, where, example) for text in texts)


def _pair(text: str, where: str, example: str) -> tuple[str, str]:
    from lab.errors import ConfigurationError

    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(f"{where}{text}: needs the form key=value, as {example}")
    return key.strip(), value.strip()
