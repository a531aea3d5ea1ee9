"""`lab run`, `lab runs` and `lab ui`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from federated.cli.console import (
    RUNS,
    TRACKING,
    WITHOUT,
    changed,
    confirmed,
    leave_out,
    plain_table,
    print_json,
    print_study,
    progress_lines,
    say,
    say_json,
    screen,
)
from lab.errors import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd


@click.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the file; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option(
    "--engine",
    type=click.Choice(["grid", "ray"]),
    default="grid",
    show_default=True,
    help="In this process, or under Flower's simulation engine.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Threads (grid) or processes (ray); default: the machine's cores.",
)
@click.option("--no-track", is_flag=True, help="Keep the run's folder, log nothing to MLflow.")
@click.option(
    "--exchange",
    type=click.Path(path_type=Path, file_okay=False),
    help="With real parties: the folder of an exchange that is served.",
)
@click.option("--fresh", is_flag=True, help="With --exchange: do not go on with an unfinished run.")
@WITHOUT
@RUNS
@TRACKING
def run(
    experiment: Path,
    changes: tuple[str, ...],
    as_json: bool,
    engine: str,
    workers: int | None,
    no_track: bool,
    exchange: Path | None,
    fresh: bool,
    without: tuple[str, ...],
    runs: Path,
    tracking_uri: str | None,
) -> None:
    """Run an experiment: its arms, a report and an MLflow run.

    EXPERIMENT is a TOML file, or the name of a shipped one (`lab config --list`).

    \b
    lab run rand_hie
    lab run mine.toml
    lab run rand_hie --set model.ridge=0.1 --json
    """
    leave_out(without)
    from federated.study.experiment import Experiment

    settings = Experiment.read(experiment, changed(changes))  # its mistakes come at once
    from federated.run import run as run_experiment

    with progress_lines() as progress:
        study = run_experiment(
            settings,
            engine=engine,
            runs=runs,
            workers=workers,
            tracking_uri=tracking_uri,
            track=not no_track,
            progress=progress,
            exchange=exchange,
            fresh=fresh,
            without=without,
        )
    if as_json:
        print_json(study)
    else:
        print_study(study, runs)


@click.group(invoke_without_command=True)
@click.option("--send", is_flag=True, help="Log the runs that MLflow does not have yet.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list and nothing else.")
@RUNS
@TRACKING
@click.pass_context
def runs(
    context: click.Context, send: bool, as_json: bool, runs: Path, tracking_uri: str | None
) -> None:
    """List runs, newest first, or remove some.

    \b
    lab runs
    lab runs --json
    lab runs rm 20261124-005153
    """
    if context.invoked_subcommand is not None:
        return
    from federated.study.run_folder import kept, log
    from lab.report.tracking import address

    folders = kept(runs)
    if send:
        for item in folders:
            if not item["logged"]:
                say(log(item["folder"], address(runs, tracking_uri)), err=as_json)
        folders = kept(runs)
    if as_json:
        say_json([{**item, "folder": str(item["folder"])} for item in folders])
    elif folders:
        screen().print(_listing(folders))
    else:
        say(f"no runs in {runs}; start with: lab run rand_hie")


def _listing(folders: list[dict[str, Any]]) -> Any:
    """Runs as a table: the score that each is compared by, in each of its arms."""
    from lab.report.style import NAMES

    arms = list(dict.fromkeys(arm for item in folders for arm in item["scores"]))
    columns = ("run (date-time)", "experiment", "score", *arms, "size", "MLflow")
    table = plain_table(*columns, numbers=(*arms, "size"))
    table.columns[0].no_wrap = True
    for item in folders:
        values = (item["scores"].get(arm) for arm in arms)
        table.add_row(
            item["short"],
            item["name"],
            NAMES.get(item["headline"], item["headline"]),
            *("" if value is None else f"{value:.4f}" for value in values),
            f"{item['bytes'] / 1e6:,.1f} MB",
            "yes" if item["logged"] else "no",
        )
    return table


@runs.command("rm")
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--runs", "folder", type=click.Path(path_type=Path), help="As of lab runs.")
@click.pass_context
def remove_runs(
    context: click.Context, names: tuple[str, ...], yes: bool, folder: Path | None
) -> None:
    """Delete runs by name, or by a beginning that no other run has.

    MLflow's copy of a run stays until it is deleted there.

    \b
    lab runs rm 20261124-005153
    """
    from federated.study.run_folder import finished, remove

    assert context.parent is not None
    place = folder or context.parent.params["runs"]
    for path in dict.fromkeys(finished(place, Path(name).name) for name in names):
        if yes or confirmed(f"delete {path}?"):
            remove(path)
            say(f"deleted {path}")


@runs.command()
@click.argument("name", metavar="RUN")
@click.option("--arm", default="federated", show_default=True, help="Whose model.")
@click.option("--runs", "folder", type=click.Path(path_type=Path), help="As of lab runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list and nothing else.")
@click.pass_context
def relativities(
    context: click.Context, name: str, arm: str, folder: Path | None, as_json: bool
) -> None:
    """By what factor each level and value multiplies the mean, in a run's GLM.

    \b
    lab runs relativities 20261124-005153
    """
    from federated.study.run_folder import finished, plain
    from lab.report.finished_run import FinishedRun

    assert context.parent is not None
    path = finished(folder or context.parent.params["runs"], Path(name).name)
    lines = FinishedRun(path).relativities
    arms = list(dict.fromkeys(lines["arm"])) if len(lines) else []
    if arm not in arms:
        raise ConfigurationError(
            f"{path}: no relativities of '{arm}'; there are those of {', '.join(arms) or 'no arm'} (of GLMs on the log or logit link)"
        )
    own = lines[lines["arm"] == arm].drop(columns="arm")
    if as_json:
        say_json(plain(own.to_dict("records")))
    else:
        screen().print(_factors(own))


def _factors(lines: pd.DataFrame) -> Any:
    """Relativities as a table; the part of the model where there are two."""
    parts = lines["part"].nunique() > 1
    numbers = ("relativity", "low", "high")
    columns = (*(("part",) if parts else ()), "feature", "level", *numbers)
    table = plain_table(*columns, numbers=numbers)
    for line in lines.to_dict("records"):
        values = ("" if line[name] != line[name] else f"{line[name]:.3f}" for name in numbers)
        table.add_row(*(str(line[name]) for name in columns[: -len(numbers)]), *values)
    return table


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@RUNS
@TRACKING
def ui(port: int, runs: Path, tracking_uri: str | None) -> None:
    """Open MLflow's page for the runs, on this machine alone.

    \b
    lab ui --port 5001
    """
    from lab.report.tracking import page, serve

    say(f"MLflow: {page(runs, tracking_uri, port)}  (Ctrl-C ends it)")
    sys.exit(serve(runs, tracking_uri, port))
