"""``lab bench``: what a user asks about on his own machine, each a ratio measured in one run."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab.errors import ConfigurationError

#: Each a module beside this one, loaded when it is asked for: ``figures`` are its rows, whose
#: docstring is printed below them.
BENCHES = (
    "paillier",
    "masks",
    "glm",
    "grid",
    "query",
    "trees",
    "steps",
    "exchange",
    "product",
    "joined-trees",
)


def report(names: tuple[str, ...], path: Path | None, quick: bool) -> None:
    """Run the benches named (or all) and print their tables.

    path: freMTPL2freq.csv(.gz), for the figures that need it. Raises :class:`ConfigurationError`
    for a name that is none of ``BENCHES``.
    """
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise ConfigurationError(f"no bench '{unknown[0]}'; there are {', '.join(BENCHES)}")
    console = Console()
    for name in names or BENCHES:
        figures = import_module(f"federated.bench.{name.replace('-', '_')}").figures
        table = Table(
            title=name, title_justify="left", box=None, pad_edge=False, header_style="dim"
        )
        for column, side in (
            ("what", "left"),
            ("ours", "right"),
            ("against", "right"),
            ("ratio", "right"),
        ):
            table.add_column(column, justify=side)  # type: ignore[arg-type]
        for row in figures(path, quick):
            table.add_row(*row)
        console.print(table)
        words = " ".join((figures.__doc__ or "").split())
        console.print(f"{escape(words)}\n", style="dim", highlight=False)
