"""Everything the command line prints goes through here: what a run found, lines that move while it
works, and the one edge at which a text that others wrote loses what a terminal would act on. And what
comes in by options that several commands take."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

    from federated.study.arms import Progress
    from federated.study.result import Study
    from lab.privacy.joining import Opened


def say(text: str = "", *, mark: str = "", err: bool = False, **style: Any) -> None:
    """Print one line, whatever is in the text. mark: of our own, before it; style: click's."""
    from lab.text import printable

    line = printable(text)
    click.echo(mark + (click.style(line, **style) if style else line), err=err)


def say_with_time(text: str) -> None:
    """Print one line of a process that stays, after the time."""
    say(f"{datetime.now():%H:%M:%S}  {text}")


def say_lines(text: str) -> None:
    """Print a text of several lines, which are our own."""
    for line in text.split("\n"):
        say(line)


def say_error(text: str) -> None:
    """Print an error on standard error. Lines after its first are set in: none looks like output."""
    first, *others = text.split("\n")
    say(first, err=True)
    for line in others:
        say(line.strip(), mark="  ", err=True)


def say_json(content: Any, indent: int | None = None) -> None:
    """Print JSON's content; signs that a terminal would act on are written as JSON's escapes."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=indent)
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    click.echo(text)


def confirmed(text: str) -> bool:
    """Ask whether to go on; no without an answer."""
    from lab.text import printable

    return click.confirm(printable(text))


def leave_out(names: tuple[str, ...]) -> None:
    """Say what it means to leave insurers out; at a terminal, ask whether to."""
    from lab.text import printable

    if not names:
        return
    who = printable(", ".join(names))
    click.echo(
        f"without {who}: unless the charter lets parties leave, later totals are of the parties of this one, "
        "and who is left out now stays out of all of them",
        err=True,
    )
    if sys.stdin.isatty():
        click.confirm("Go on without?", abort=True, err=True)


def say_table(text: str) -> None:
    """Print a table as CSV: byte for byte to a file or a pipe, line by line printable otherwise."""
    if sys.stdout.isatty():
        say_lines(text.removesuffix("\n"))
    else:
        click.echo(text, nl=False)


#: Characters of a line in a file or a pipe, which nobody's window cuts.
UNCUT = 10_000


def screen(stderr: bool = False) -> Console:
    """A console whose texts are one line each, after empty ones, with no markup in it; where it is
    no terminal, no table is wrapped."""
    from rich.console import Console

    from lab.text import printable

    def line(text: str) -> str:
        rest = text.lstrip("\n")
        return "\n" * (len(text) - len(rest)) + printable(rest)

    class Screen(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            texts = [line(o) if isinstance(o, str) else o for o in objects]
            super().print(*texts, **options)

    console = Screen(stderr=stderr, markup=False)
    if not console.is_terminal:
        console.width = UNCUT
    return console


def print_heading(console: Console, title: str, rest: str) -> None:
    """A line whose beginning stands out."""
    from rich.text import Text

    from lab.text import printable

    console.print(Text.assemble((printable(title), "bold"), printable(rest)), highlight=False)


@contextmanager
def progress_lines() -> Iterator[Progress | None]:
    """A line for each arm with what it is doing, on standard error, while the work goes on."""
    console = screen(stderr=True)
    if not console.is_terminal:
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
        TextColumn("{task.fields[what]:<28}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bars:
        yield arm_lines(bars)


def arm_lines(bars: Bars) -> Progress:
    """What moves a line for each arm: it has its tick when the next one begins, and a step of it
    counts once it is over."""
    from lab.text import printable

    lines: dict[str, Any] = {}

    def tell(arm: str, what: str, step: int, of: int | None) -> None:
        for other, line in lines.items():
            if other != arm:
                bars.update(line, total=1, completed=1, what="done")
        if arm not in lines:
            lines[arm] = bars.add_task(arm, total=of, what="")
        over = None if of is None else max(0, step - 1)
        bars.update(lines[arm], total=of, completed=over, what=printable(what))

    return tell


def print_json(study: Study) -> None:
    from federated.study.run_folder import summary

    result = summary(study)
    result.pop("curves")
    result["paths"] = {
        "folder": str(study.folder),
        "report": str(study.folder / "report.html"),
        "tracking": study.tracking,
    }
    say_json(result)


def plain_table(*columns: str, numbers: Iterable[str] = ()) -> Any:
    """A table without lines, numbers to the right, every cell printable."""
    from rich.table import Table
    from rich.text import Text

    from lab.text import printable

    class PlainTable(Table):
        def add_row(self, *cells: Any, **options: Any) -> None:
            texts = (Text(printable(c)) if isinstance(c, str) else c for c in cells)
            super().add_row(*texts, **options)

    table, right = PlainTable(box=None, pad_edge=False, header_style="dim"), set(numbers)
    for column in columns:
        heading = Text(printable(column))
        side: Any = "right" if column in right else "left"
        table.add_column(heading, justify=side, no_wrap=column in right)  # no number is cut off
    return table


def own_command() -> str:
    """What a user types to start this command line: its name, or its file if no path leads to it."""
    return "lab" if shutil.which("lab") else sys.argv[0]


def print_study(study: Study, runs: Path) -> None:
    """Scores by party and arm, what went wrong, what left the parties, where to look on."""
    from lab.report.style import NAMES
    from lab.report.tables import signed

    console = screen()
    print_heading(console, study.experiment.name, f", {NAMES[study.headline]} {study.judged}")
    console.print()
    console.print(_scores(study))
    if study.outlook:
        _print_outlook(console, study)
    for notice in study.notices:
        console.print(notice, highlight=False, soft_wrap=True)
    for result in study.arms.values():
        for holder, reason in [*result.failures.items(), *result.notes.items()]:
            console.print(f"{result.name}, {holder}: {reason}", style="yellow", highlight=False)
    differences = study.differences
    if len(differences):
        for line in differences[differences["party"] == "all"].to_dict("records"):
            change, low, high = (signed(line[k], 5) for k in ("difference", "low", "high"))
            console.print(
                f"federated minus {line['against']}: {change} (95 % interval {low} to {high})",
                highlight=False,
            )
    _print_receipt(console, study)
    command = f"{own_command()} ui" + (f" --runs {shlex.quote(str(runs))}" * (str(runs) != "runs"))
    for label, text in (
        ("report", study.folder / "report.html"),
        ("tracking", study.tracking or "off"),
        ("open", command),
    ):
        console.print(f"{label:<8} {text}", highlight=False, soft_wrap=True)


def _scores(study: Study) -> Any:
    """The headline score of each arm for the whole market and for each party."""
    scores, arms = study.scores[study.headline], list(study.arms)
    sizes = {name: size["train"] for name, size in study.market.sizes.items()}
    absent = "not told" if study.outlook else "no fit"  # a real party's scores stay with it
    table = plain_table("party", "training rows", *arms, numbers=("training rows", *arms))
    for holder in ["all", *sizes]:
        cells = [
            f"{scores[arm, holder]:.4f}" if (arm, holder) in scores.index else absent
            for arm in arms
        ]
        rows = sizes[holder] if holder != "all" else sum(n or 0 for n in sizes.values())
        table.add_row(
            "whole market" if holder == "all" else holder,
            f"{rows:,}" if rows else "not told",
            *cells,
            style="bold" if holder == "all" else None,
        )
    return table


def _print_receipt(console: Any, study: Study) -> None:
    """What left the parties in the federated arm, and how it was hidden."""
    from rich.text import Text

    receipt = study.receipt
    if not len(receipt):
        return
    protection = {
        "clear": "IN THE CLEAR",
        "masks": "hidden by pairwise masks",
        "paillier": f"hidden by paillier, {receipt['key_bits'].max()} bits"
        + (", key split among all" if study.experiment.protection.key == "split" else ""),
    }[study.experiment.protection.sums]
    for party in sorted({party for party, _ in study.silent}):
        console.print(
            f"{party}: did not answer every message; see the totals' rows", style="yellow"
        )
    line = Text(
        f"\nleft the parties: {receipt['messages'].sum():,} messages, "
        f"{receipt['bytes'].sum():,} bytes, {protection}, no record"
    )
    line.highlight_words(["IN THE CLEAR"], "bold red")
    console.print(line, highlight=False, soft_wrap=True)
    console.print(_opened_line(study.opened), highlight=False, soft_wrap=True)


def _opened_line(openings: Sequence[Opened]) -> str:
    """What was told of the totals, and the smallest cell among it."""
    fewest = [line.fewest_persons for line in openings if line.fewest_persons is not None]
    cells = f"none of fewer than {min(fewest):,} persons" if fewest else "each over all rows"
    if fewest and min(fewest) == 1:
        cells = "some perhaps of one person"
    return f"opened: {sum(line.numbers for line in openings):,} numbers, {cells}"


def _print_outlook(console: Any, study: Study) -> None:
    """Who took part in a run with real parties, since when, and why who left."""
    console.print(f"\nrun {study.run}", highlight=False)
    table = plain_table("party", "role", "here since (UTC)", "")
    for party in study.outlook:
        table.add_row(party.name, party.role, party.since, party.state)
    console.print(table)
    if study.not_run:
        note = f"arms that simulations alone run: {', '.join(study.not_run)}"
        console.print(note, style="yellow", highlight=False, soft_wrap=True)
    if study.unanswered:
        note = f"the experiment's questions were not answered: {study.unanswered}"
        console.print(note, style="yellow", highlight=False, soft_wrap=True)


# Options that several commands take.

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
