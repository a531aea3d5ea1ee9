"""The command line. Heavy imports stand inside the command that needs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from federated.cli import audit as cli_audit
from federated.cli import charter as cli_charter
from federated.cli import config, drafts, queries, runs, search
from federated.cli import data as cli_data
from federated.cli import exchange as cli_exchange
from federated.cli import keys as cli_keys
from federated.cli import link as cli_link
from federated.cli.console import plain_table, print_heading, say, say_error, screen


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="insurance-privacy-lab")
def lab() -> None:
    """Claims models across insurers that never share a record.

    \b
    Try:  lab run rand_hie
    """


for _command in (
    cli_audit.audit,
    cli_charter.charter,
    cli_data.data,
    cli_data.market,
    cli_data.score,
    cli_exchange.exchange,
    cli_keys.holder,
    cli_keys.keys,
    cli_exchange.node,
    cli_link.link,
    config.config,
    queries.query,
    runs.run,
    runs.runs,
    runs.ui,
    search.sweep,
    search.tune,
):
    lab.add_command(_command)
cli_data.data.add_command(drafts.draft)


@lab.command()
@click.argument("names", nargs=-1)
@click.option(
    "--path",
    type=click.Path(path_type=Path),
    help="freMTPL2freq.csv(.gz), for the freMTPL2 figures; of quality also a folder of tables or an experiment.",
)
@click.option("--quick", is_flag=True, help="Smaller jobs: a minute instead of several.")
def bench(names: tuple[str, ...], path: Path | None, quick: bool) -> None:
    """Measure on this machine, each figure as a ratio within one run.

    \b
    lab bench
    lab bench paillier --quick
    """
    from federated.bench.report import report

    console = screen()
    for result in report(names, path, quick):
        print_heading(console, result.name, "")
        table = plain_table("what", "ours", "against", "ratio", numbers=NUMBERS)
        for row in result.rows:
            table.add_row(*row)
        console.print(table)
        console.print(result.words, style="dim", highlight=False)
        console.print()


#: Columns of a bench's table that stand to the right.
NUMBERS = ("ours", "against", "ratio")


def main() -> None:
    """Run the command line: errors are one line and an exit code, never a traceback."""
    try:
        lab(standalone_mode=False)
    except click.exceptions.Abort:
        say("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("stopped", err=True)
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
        say_error(f"lab: {error}")
        return error.exit_code if isinstance(error, LabError) else 1
    if isinstance(error, OSError) and error.filename and error.strerror:
        say_error(f"lab: {os.fsdecode(error.filename)}: {error.strerror.lower()}")
        return 2
    if isinstance(error, ModuleNotFoundError) and error.name:
        say_error(f"lab: the package '{error.name}' is not installed; install this one again")
        return 2
    # what such an error says may be a person's value
    say(
        f"lab: {type(error).__name__}: this is a defect, LAB_TRACEBACK=1 shows what and where",
        err=True,
    )
    return 1
