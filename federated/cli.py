"""The command line. Heavy imports stand inside the command that needs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from federated import cli_audit, cli_charter, cli_data, cli_exchange

if TYPE_CHECKING:
    from federated.arms import Progress, Study

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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="insurance-privacy-lab")
def lab() -> None:
    """Claims models across insurers that never share a record.

    \b
    Try:  lab run experiments/rand_hie.toml
    """


for _command in (
    cli_audit.audit,
    cli_charter.charter,
    cli_data.data,
    cli_data.market,
    cli_data.score,
    cli_exchange.exchange,
    cli_exchange.holder,
    cli_exchange.keys,
    cli_exchange.node,
):
    lab.add_command(_command)


@lab.command()
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
    "--on",
    "exchange",
    type=click.Path(path_type=Path, file_okay=False),
    help="With real parties: the folder of an exchange that is served.",
)
@click.option("--fresh", is_flag=True, help="With --on: do not go on with an unfinished run.")
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
    from federated.experiment import Experiment

    read = Experiment.read(experiment, changed(changes))
    from federated.experiment import run as perform

    with _progress(quiet=as_json) as progress:
        study = perform(
            read,
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
        _print_json(study)
    else:
        _print_study(study, runs)


def changed(changes: tuple[str, ...]) -> dict[str, str]:
    """The keys and values of ``--set``."""
    return dict(map(_pair, changes))


def _pair(change: str) -> tuple[str, str]:
    from lab.errors import ConfigurationError

    key, equals, value = change.partition("=")
    if not equals:
        raise ConfigurationError(f"--set {change}: needs the form key=value, as model.ridge=0.1")
    return key.strip(), value.strip()


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress | None]:
    """A line for each arm with what it is doing, on standard error, while the work goes on."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    with Bars(
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description:<10}"),
        BarColumn(24),
        TextColumn("{task.fields[what]:<28}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bars:
        lines: dict[str, Any] = {}

        def tell(arm: str, what: str, step: int, of: int | None) -> None:
            for other, line in lines.items():
                if other != arm:
                    bars.update(line, total=1, completed=1, what="done")
            if arm not in lines:
                lines[arm] = bars.add_task(arm, total=of, what=what)
            bars.update(lines[arm], total=of, completed=step, what=what)

        yield tell


def _print_json(study: Study) -> None:
    import json

    from federated.record import summary

    result = summary(study)
    result.pop("curves")
    result["paths"] = {
        "folder": str(study.folder),
        "report": str(study.folder / "report.html"),
        "tracking": study.tracking,
    }
    click.echo(json.dumps(result, ensure_ascii=False, allow_nan=False))


def _print_study(study: Study, runs: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from lab.figures import NAMES

    console = Console()
    scores = study.scores[study.headline]
    arms = list(study.arms)
    console.print(f"[bold]{study.experiment.name}[/], {NAMES[study.headline]} on test rows\n")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("party")
    table.add_column("training rows", justify="right")
    for arm in arms:
        table.add_column(arm, justify="right")
    sizes = {name: size["train"] for name, size in study.market.sizes.items()}
    absent = "not told" if study.outlook else "no fit"  # a real party's scores stay with it
    for holder in ["all", *sizes]:
        cells = [
            f"{scores[arm, holder]:.4f}" if (arm, holder) in scores.index else absent
            for arm in arms
        ]
        name = "whole market" if holder == "all" else holder
        rows = sizes[holder] if holder != "all" else sum(n or 0 for n in sizes.values())
        table.add_row(
            name,
            f"{rows:,}" if rows else "not told",
            *cells,
            style="bold" if holder == "all" else None,
        )
    console.print(table)
    if study.outlook:
        _print_outlook(console, study)
    for result in study.arms.values():
        for holder, reason in [*result.failures.items(), *result.notes.items()]:
            console.print(f"{result.name}, {holder}: {reason}", style="yellow", highlight=False)
    differences = study.differences
    if len(differences):
        for line in differences[differences["party"] == "all"].itertuples():
            console.print(
                f"federated minus {line.against}: {line.difference:+.5f} "
                f"(95 % interval {line.low:+.5f} to {line.high:+.5f})",
                highlight=False,
            )
    receipt = study.receipt
    if len(receipt):
        words = {
            "clear": "[bold red]IN THE CLEAR[/]",
            "masks": "hidden by pairwise masks",
            "paillier": f"hidden by paillier, {receipt['key_bits'].max()} bits"
            + (", key split among all" if study.experiment.protection.key == "split" else ""),
        }[study.experiment.protection.sums]
        for party in sorted({party for party, _ in study.silent}):
            console.print(
                f"{party}: did not answer every message; see the totals' rows", style="yellow"
            )
        console.print(
            f"\nleft the parties: {receipt['messages'].sum():,} messages, "
            f"{receipt['bytes'].sum():,} bytes, {words}, no record",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"report   {study.folder / 'report.html'}", highlight=False, soft_wrap=True)
    console.print(f"tracking {study.tracking or 'off'}", highlight=False, soft_wrap=True)
    command = "lab ui" if str(runs) == "runs" else f"lab ui --runs {runs}"
    console.print(f"open     {command}", highlight=False, soft_wrap=True)


def _print_outlook(console: Any, study: Study) -> None:
    """Who took part in a run with real parties, since when, and why who left."""
    from rich.table import Table

    console.print(f"\nrun {study.run}", highlight=False)
    table = Table("party", "role", "here since (UTC)", "", box=None, header_style="dim")
    for party in study.outlook:
        table.add_row(party.name, party.role, party.since, party.state)
    console.print(table)
    if study.not_run:
        told = f"arms that simulations alone run: {', '.join(study.not_run)}"
        console.print(told, style="yellow", highlight=False, soft_wrap=True)
    if study.unanswered:
        told = f"the experiment's questions were not answered: {study.unanswered}"
        console.print(told, style="yellow", highlight=False, soft_wrap=True)


@lab.command()
@click.argument("question")
@click.option(
    "--on",
    "experiment",
    default="experiments/rand_hie.toml",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Whose data, parties and protection: an experiment file.",
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Override a key of it.")
@click.option(
    "--exchange",
    type=click.Path(path_type=Path, file_okay=False),
    help="Ask real parties: the folder of an exchange that is served.",
)
@WITHOUT
@click.option("--epsilon", type=float, help="Ask every party to add noise of this epsilon.")
@click.option("--delta", type=float, default=0.0, help="With a delta the noise is Gaussian.")
@click.option("--rows-per-person", type=int, default=1, help="Rows of a person that count.")
@click.option("--json", "form", flag_value="json", help="One JSON object and nothing else.")
@click.option("--csv", "form", flag_value="csv", help="The table alone, as CSV.")
@RUNS
def query(
    question: str,
    experiment: Path,
    changes: tuple[str, ...],
    exchange: Path | None,
    without: tuple[str, ...],
    epsilon: float | None,
    delta: float,
    rows_per_person: int,
    form: str | None,
    runs: Path,
) -> None:
    """Ask all parties a question in SQL; learn the total and nothing else.

    \b
    lab query "select idp, count(*), avg(mdvis) from rand_hie group by idp"
    lab query "select count(*), avg(disea) from rand_hie where hlthp = 1" --epsilon 0.5
    lab query "select idp, count(*) from rand_hie group by idp" --exchange exchange
    """
    from federated.experiment import Experiment

    read = Experiment.read(experiment, changed(changes))
    from federated.experiment import Query
    from federated.query import query as ask
    from federated.query import with_names
    from lab.contracts import parse
    from lab.privacy import Noise

    noise = None
    if epsilon is not None:
        given = {"mechanism": "gaussian" if delta else "laplace", "epsilon": epsilon}
        given |= {"delta": delta, "rows_per_person": rows_per_person}
        noise = parse(Noise, given, where="noise")
    if exchange is None:
        answer = ask(read, question, noise=noise, runs=runs)
    else:
        from federated.conduct import ask_on

        asked = {"query": (Query(sql=question, noise=noise),)}
        ((_, answer),) = ask_on(read.model_copy(update=asked), exchange, without=without)
    if form == "csv":
        click.echo(with_names(answer).to_csv(index=False), nl=False)
    elif form == "json":
        click.echo(_answer_json(answer))
    else:
        _print_answer(answer, read.protection.key_bits)


#: Rows of an answer that are printed; --csv has all of them.
ROWS_PRINTED = 60


def _answer_json(answer: Any) -> str:
    import json

    from federated.query import with_names
    from federated.record import plain

    told = {"rows": with_names(answer).astype(object).to_dict("records"), **answer.attrs}
    return json.dumps(plain(told), ensure_ascii=False, allow_nan=False)


def _print_answer(answer: Any, key_bits: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from federated.query import with_names
    from lab.report import shown

    console, told = Console(), answer.attrs
    table = Table(box=None, pad_edge=False, header_style="dim")
    rows = with_names(answer)
    for name in rows.columns:
        table.add_column(str(name), justify="right" if rows[name].dtype.kind in "iuf" else "left")
    for row in rows.head(ROWS_PRINTED).astype(object).to_numpy():
        table.add_row(*map(shown, row))
    console.print(table)
    if len(answer) > ROWS_PRINTED:
        console.print(f"… {len(answer) - ROWS_PRINTED:,} more rows; --csv prints all", style="dim")
    for name in ("reserve", "medians"):
        if name in told:
            line = ", ".join(f"{k} {shown(v)}" for k, v in told[name].items())
            console.print(line, highlight=False)
    lost = f"{told['hidden']:,} of {told['cells']:,} cells hidden (·). " if told["hidden"] else ""
    console.print(f"\n{lost}{told['rules']}", style="dim", highlight=False, soft_wrap=True)
    receipt = told["receipt"]
    words = {"clear": "IN THE CLEAR", "paillier": f"under paillier, {key_bits} bits"}
    noise = told["noise"]
    console.print(
        f"left the parties: {len(receipt):,} messages, {sum(r['values'] for r in receipt):,} values, "
        f"{sum(r['bytes'] for r in receipt):,} bytes, {words[told['hiding']]}"
        + (f", noise of epsilon {noise['epsilon']:g} by each party" if noise else "")
        + f", no record; {told['seconds']:.1f} s",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


@lab.command()
@click.option("--send", is_flag=True, help="Log the runs that MLflow does not have yet.")
@RUNS
@TRACKING
def runs(send: bool, runs: Path, tracking_uri: str | None) -> None:
    """List runs, newest first.

    \b
    lab runs
    """
    from federated.record import kept, log
    from lab.tracking import address

    found = kept(runs)
    if not found:
        click.echo(f"no runs in {runs}; start with: lab run experiments/rand_hie.toml")
    for item in found:
        if send and not item["logged"]:
            click.echo(log(item["folder"], address(runs, tracking_uri)))
            continue
        scores = "  ".join(
            f"{arm} {value:.4f}" for arm, value in item["scores"].items() if value is not None
        )
        note = "" if item["logged"] else "  (not in MLflow)"
        click.echo(f"{item['folder'].name}  {item['name']}  {scores}{note}")


@lab.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@RUNS
@TRACKING
def ui(port: int, runs: Path, tracking_uri: str | None) -> None:
    """Open MLflow's page for the runs, on this machine alone.

    \b
    lab ui --port 5001
    """
    from lab.tracking import serve

    click.echo(f"MLflow: http://127.0.0.1:{port}  (Ctrl-C ends it)")
    sys.exit(serve(runs, tracking_uri, port))


@lab.command()
@click.argument("names", nargs=-1)
@click.option(
    "--path",
    type=click.Path(path_type=Path),
    help="freMTPL2freq.csv(.gz), for the freMTPL2 figures.",
)
@click.option("--quick", is_flag=True, help="Smaller jobs: a minute instead of several.")
def bench(names: tuple[str, ...], path: Path | None, quick: bool) -> None:
    """Measure on this machine, each figure as a ratio within one run.

    \b
    lab bench
    lab bench paillier --quick
    """
    from federated.bench import report

    report(names, path, quick)


def main() -> None:
    """Run the command line: errors are one line and an exit code, never a traceback."""
    try:
        lab(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    from lab.errors import LabError
    from secure_agg.errors import SecureAggError

    if os.environ.get("LAB_TRACEBACK"):
        raise error
    if isinstance(error, LabError | SecureAggError):
        click.echo(f"lab: {error}", err=True)
        return error.exit_code if isinstance(error, LabError) else 1
    click.echo(
        f"lab: {type(error).__name__}: {error}; this is a defect, LAB_TRACEBACK=1 shows where",
        err=True,
    )
    return 1
