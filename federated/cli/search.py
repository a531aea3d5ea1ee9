"""`lab tune` and `lab sweep`: what was tried, what it came to, and the best settings to paste."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from federated.cli.console import (
    RUNS,
    TRACKING,
    changed,
    plain_table,
    print_heading,
    progress_lines,
    say,
    say_json,
    say_lines,
    screen,
)

if TYPE_CHECKING:
    from federated.search.cross_validation import Cost, Trial
    from federated.search.sweep import Swept
    from federated.search.tune import Tuned


@click.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the file; may be repeated.",
)
@click.option("--cost", is_flag=True, help="Say what the search costs, from one fit, and stop.")
@click.option(
    "--to",
    "copy",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the best settings as an experiment file here too; never over one that is there.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--workers", type=click.IntRange(1), help="Threads; default: the machine's cores.")
@click.option("--no-track", is_flag=True, help="Keep the search's folder, log nothing to MLflow.")
@RUNS
@TRACKING
def tune(
    experiment: Path,
    changes: tuple[str, ...],
    cost: bool,
    copy: Path | None,
    as_json: bool,
    workers: int | None,
    no_track: bool,
    runs: Path,
    tracking_uri: str | None,
) -> None:
    """Search the settings that EXPERIMENT's [tune] lists, by federated cross-validation.

    Folds are of the training rows, by whole persons; rows for testing are not read. A search that
    ended early goes on where it was: give the same command again.

    \b
    [tune]
    method = "tpe"
    trials = 20
    [tune.vary]
    model.ridge = { low = 1e-6, high = 1.0, log = true }

    \b
    lab tune mine.toml --cost
    lab tune mine.toml --to tuned.toml
    """
    from federated.study.experiment import Experiment

    settings = Experiment.read(experiment, changed(changes))  # its mistakes come at once
    check_new(copy)
    from federated.search.tune import tune as search

    def tell(estimate: Cost) -> None:
        say(_words(estimate), err=True)
        if cost and estimate.seconds is not None:
            raise click.exceptions.Exit(0)

    with progress_lines() as progress:
        tuned = search(settings, runs=runs, workers=workers, progress=progress, told=tell)
    if copy is not None:
        with copy.open("x", encoding="utf-8") as file:
            file.write(tuned.file.read_text(encoding="utf-8"))
    tracking = "off" if no_track else tuned.log(runs, tracking_uri)
    if as_json:
        paths = {"folder": str(tuned.folder), "file": str(tuned.file), "tracking": tracking}
        say_json(tuned.result() | {"paths": paths})
    else:
        _print(tuned, copy or tuned.file, tracking)


def check_new(path: Path | None) -> None:
    """Refuse, before there is anything to write, a file that can't be a new one."""
    from lab.errors import ConfigurationError

    if path is not None and path.exists():
        raise ConfigurationError(f"--to {path}: is there already; name a new file")
    if path is not None and not path.parent.is_dir():
        raise ConfigurationError(f"--to {path}: there is no folder {path.parent}; make it first")


def _words(cost: Cost) -> str:
    """What a search costs, before its first fit and after it."""
    if cost.seconds is None:
        kept = f"; {cost.kept:,} trials are there already" if cost.kept else ""
        return f"at most {cost.fits:,} fits{kept}"
    assert cost.totals is not None
    whole = cost.fits * cost.seconds
    time = f"{whole / 60:,.0f} minutes" if whole > 120 else f"{whole:,.0f} s"
    return (
        f"the first fit took {cost.seconds:.1f} s and opened {cost.totals:,} totals: at most {time} "
        f"and {cost.fits * cost.totals:,} totals for {cost.fits:,} more like it"
    )


def _print(tuned: Tuned, file: Path, tracking: str) -> None:
    """The trials, the best of them, what the procedure is worth, where to look on."""
    from lab.report.style import NAMES

    console, score = screen(), NAMES[tuned.experiment.headline]
    print_heading(console, tuned.experiment.name, f", {score} over folds of the training rows")
    console.print()
    console.print(_trials(tuned))
    for number, trial in enumerate(tuned.trials):
        if trial.reason:
            console.print(f"trial {number}: {trial.reason}", style="yellow", highlight=False)
    best, own = tuned.trials[tuned.best], tuned.trials[0].score
    own_words = "which has no score" if own is None else f"which scores {own:.4f}"
    line = f"best: trial {tuned.best}, {best.score:.4f}; trial 0 is the experiment as it stands, {own_words}"
    console.print(line, highlight=False, soft_wrap=True)
    console.print(_worth(tuned), highlight=False, soft_wrap=True)
    _print_cost(console, tuned)
    console.print()
    say_lines(tuned.toml.rstrip())
    console.print()
    for label, text in (
        ("run", f"lab run {file}"),
        ("folder", tuned.folder),
        ("tracking", tracking),
    ):
        console.print(f"{label:<8} {text}", highlight=False, soft_wrap=True)


def _print_cost(console: Any, tuned: Tuned) -> None:
    """What the whole search took, and what left the simulated parties for it."""
    cost, protection = tuned.result()["cost"], tuned.experiment.protection
    hiding = {
        "clear": "IN THE CLEAR",
        "masks": "hidden by pairwise masks",
        "paillier": f"hidden by paillier, {protection.key_bits} bits",
    }[protection.sums]
    console.print(
        f"{cost['fits']:,} fits, {cost['seconds']:,.0f} s; left the parties: {cost['bytes']:,} bytes, "
        f"{hiding}, no record; opened: {cost['opened']:,} numbers in {cost['totals']:,} totals",
        highlight=False,
        soft_wrap=True,
    )


def _trials(tuned: Tuned) -> Any:
    """A row for each trial: its settings, its score, how far folds differ."""
    from federated.search.trials import in_short

    keys = list(dict.fromkeys(key for trial in tuned.trials for key in trial.settings))
    names = [key.removeprefix("model.") for key in keys]
    numbers = ("score", "standard error", "s")
    table = plain_table("trial", *names, *numbers, numbers=("trial", *names, *numbers))
    for number, trial in enumerate(tuned.trials):
        values = (in_short(trial.settings[k]) if k in trial.settings else "" for k in keys)
        table.add_row(str(number), *values, *_scored(trial), f"{trial.seconds:.1f}")
    return table


def _scored(trial: Trial) -> tuple[str, str]:
    return ("failed", "") if trial.score is None else (f"{trial.score:.4f}", f"{trial.error:.4f}")


def _worth(tuned: Tuned) -> str:
    """What choosing by these folds is worth on rows that were not chosen by."""
    if tuned.nested_score is None:
        return (
            "a best of several scores is too good; tune.outer = 5 tells what the procedure is worth"
        )
    choices = len({str(trial.settings) for trial in tuned.nested})
    chosen = "one choice in all" if choices == 1 else f"{choices} choices among them"
    return (
        f"on rows that it has not seen the procedure scores {tuned.nested_score:.4f}: "
        f"{len(tuned.nested)} outer folds, {chosen}"
    )


@click.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Seeds, from the experiment's own on: who holds which rows, which are for testing.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key, or run each of KEY=[VALUE, ...]; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option("--workers", type=click.IntRange(1), help="Threads; default: the machine's cores.")
@click.option("--no-track", is_flag=True, help="Keep the sweep's folder, log nothing to MLflow.")
@RUNS
@TRACKING
def sweep(
    experiment: Path,
    seeds: int,
    changes: tuple[str, ...],
    as_json: bool,
    workers: int | None,
    no_track: bool,
    runs: Path,
    tracking_uri: str | None,
) -> None:
    """Run EXPERIMENT over seeds and settings: one table and one figure, with intervals.

    Every combination of listed values runs under every seed, with all arms of the experiment. A key
    whose own value is a list takes a list of lists. A sweep that ended early goes on where it was.

    \b
    lab sweep rand_hie --seeds 5
    lab sweep rand_hie --set "parties.count=[3, 6, 12]" --set protection.sums=clear
    """
    from federated.study.experiment import Experiment
    from lab.records import toml_value

    vary: dict[str, list[Any]] = {}
    fixed: dict[str, Any] = {}
    for key, text in changed(changes).items():
        value = toml_value(text)
        if isinstance(value, list):
            vary[key] = value
        else:
            fixed[key] = value
    settings = Experiment.read(experiment, fixed)  # its mistakes come at once
    from federated.search.sweep import sweep as run_all

    with progress_lines() as progress:
        swept = run_all(settings, vary, seeds=seeds, runs=runs, workers=workers, progress=progress)
    tracking = "off" if no_track else swept.log(runs, tracking_uri)
    if as_json:
        paths = {"folder": str(swept.folder), "tracking": tracking}
        say_json(swept.result() | {"paths": paths})
    else:
        _print_sweep(swept, tracking)


def _print_sweep(swept: Swept, tracking: str) -> None:
    from federated.search.trials import words
    from lab.report.style import NAMES
    from lab.report.tables import signed

    console = screen()
    title = f", {NAMES[swept.experiment.headline]} {swept.judged} over seeds, 95 % intervals of the mean"
    print_heading(console, swept.experiment.name, title)
    console.print()
    numbers = ("seeds", "mean", "spread", "low", "high")
    table = plain_table("settings", "arm", *numbers, numbers=numbers)
    for row in swept.table.to_dict("records"):
        difference = "minus" in row["arm"]
        values = [
            ""
            if row[n] != row[n]
            else signed(row[n], 5)
            if difference and n != "spread"
            else f"{row[n]:.4f}"
            for n in numbers[1:]
        ]
        table.add_row(row["settings"], row["arm"], str(row["seeds"]), *values)
    console.print(table)
    for run in swept.runs:
        if run.reason:
            where = words({"seed": run.seed} | run.settings)
            console.print(f"{where}: {run.reason}", style="yellow", highlight=False)
    console.print(
        "intervals are of splits of this one table, and say nothing of another's rows",
        highlight=False,
    )
    for label, text in (("figure", swept.folder / "figure.svg"), ("tracking", tracking)):
        console.print(f"{label:<8} {text}", highlight=False, soft_wrap=True)
