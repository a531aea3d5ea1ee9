"""What a run prints, and the lines that move while it works."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from federated.study.arms import Progress
    from federated.study.result import Study
    from lab.privacy.joining import Opened


@contextmanager
def progress_lines(quiet: bool) -> Iterator[Progress | None]:
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


def print_json(study: Study) -> None:
    import json

    from federated.study.run_folder import summary

    result = summary(study)
    result.pop("curves")
    result["paths"] = {
        "folder": str(study.folder),
        "report": str(study.folder / "report.html"),
        "tracking": study.tracking,
    }
    click.echo(json.dumps(result, ensure_ascii=False, allow_nan=False))


def plain_table(*columns: str, numbers: Iterable[str] = ()) -> Any:
    """A table without lines, numbers to the right."""
    from rich.table import Table

    table, right = Table(box=None, pad_edge=False, header_style="dim"), set(numbers)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def print_study(study: Study, runs: Path) -> None:
    """Scores by party and arm, what went wrong, what left the parties, where to look on."""
    from rich.console import Console

    from lab.report.style import NAMES

    console = Console()
    console.print(f"[bold]{study.experiment.name}[/], {NAMES[study.headline]} on test rows\n")
    console.print(_scores(study))
    if study.outlook:
        _print_outlook(console, study)
    left_out = getattr(study.market, "left_out", {})
    if left_out:
        reasons = "; ".join(f"{name} {why}" for name, why in left_out.items())
        console.print(f"no features: {reasons}", style="yellow", highlight=False, markup=False)
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
    _print_receipt(console, study)
    command = "lab ui" if str(runs) == "runs" else f"lab ui --runs {runs}"
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
    receipt = study.receipt
    if not len(receipt):
        return
    protection = {
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
        f"{receipt['bytes'].sum():,} bytes, {protection}, no record",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_opened_line(study.opened), highlight=False, soft_wrap=True)


def _opened_line(opened: Sequence[Opened]) -> str:
    """What was told of the totals, and the smallest cell among it."""
    fewest = [line.fewest_persons for line in opened if line.fewest_persons is not None]
    cells = f"none of fewer than {min(fewest):,} persons" if fewest else "each over all rows"
    return f"opened: {sum(line.numbers for line in opened):,} numbers, {cells}"


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
