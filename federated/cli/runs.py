"""`lab run`, `lab runs` and `lab ui`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from federated.cli.console import print_json, print_study, progress_lines, say
from federated.cli.options import RUNS, TRACKING, WITHOUT, changed


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

    \b
    lab run experiments/rand_hie.toml
    lab run experiments/rand_hie.toml --set model.ridge=0.1 --json
    """
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


@click.command()
@click.option("--send", is_flag=True, help="Log the runs that MLflow does not have yet.")
@RUNS
@TRACKING
def runs(send: bool, runs: Path, tracking_uri: str | None) -> None:
    """List runs, newest first.

    \b
    lab runs
    """
    from federated.study.run_folder import kept, log
    from lab.report.tracking import address

    folders = kept(runs)
    if not folders:
        say(f"no runs in {runs}; start with: lab run experiments/rand_hie.toml")
    for item in folders:
        if send and not item["logged"]:
            say(log(item["folder"], address(runs, tracking_uri)))
            continue
        scores = "  ".join(
            f"{arm} {value:.4f}" for arm, value in item["scores"].items() if value is not None
        )
        note = "" if item["logged"] else "  (not in MLflow)"
        say(f"{item['folder'].name}  {item['name']}  {scores}{note}")


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
