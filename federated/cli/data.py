"""Commands for tables: look at sources, check and score tables, make a simulated market."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from federated.cli.console import plain_table, print_heading, say, say_lines, say_table, screen
from federated.cli.desk import ask_scores
from federated.cli.queries import tell_scores

if TYPE_CHECKING:
    from federated.study.experiment import Experiment
    from lab.tables.contracts import Contract


@click.group()
def data() -> None:
    """Look at sources and check tables against contracts."""


@data.command()
@click.argument("source", required=False)
@click.option("--path", help="Where a published table lies, for sources that are not installed.")
def describe(source: str | None, path: str | None) -> None:
    """Show a source's columns, rows, provenance and licence; without SOURCE list all sources.

    \b
    lab data describe
    lab data describe rand_hie
    lab data describe market --path my-market
    """
    from lab.errors import ConfigurationError
    from lab.tables.sources import built_in, load

    console = screen()
    if source is None:
        console.print(_sources())
        return
    contract = built_in(source)
    print_heading(console, contract.name, f"  {contract.title}")
    for label, text in (
        ("published", contract.published),
        ("licence", contract.licence),
        ("note", contract.notes),
    ):
        if text:
            console.print(f"{label}: {text}", highlight=False)
    if source == "market":
        from lab.market.facts import describe as page

        say_lines("\n" + page(Path(path) if path is not None else None))
    try:
        frame = load(source, path).frame
        console.print(f"rows: {len(frame):,}, columns: {len(frame.columns)}", highlight=False)
    except ConfigurationError:
        if path is not None:
            raise
        console.print("rows: give --path to count them", highlight=False)
    table = plain_table("column", "role", "rule", "unit", "what")
    table.columns[0].no_wrap = True
    for name, column in contract.columns.items():
        rule = column.allowed().removeprefix("must be ")
        table.add_row(name, column.role, rule, column.unit, column.description)
    console.print(table)


def _sources() -> Any:
    """The built-in sources as a table, with where each comes from."""
    from lab.tables.sources import INSTALLED, SOURCES, built_in

    table = plain_table("source", "what", "where")
    for name in SOURCES:
        place = "by --path" if name != "market" else "lab market make"
        table.add_row(name, built_in(name).title, "installed" if name in INSTALLED else place)
    return table


@data.command("deal")
@click.argument("experiment", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Override a key of it.")
def deal_data(experiment: Path, folder: Path, changes: tuple[str, ...]) -> None:
    """Write the tables of an experiment's simulated parties, to start real nodes on.

    \b
    lab data deal rand_hie tables
    """
    from federated.cli.console import changed
    from federated.deployment.dealt_tables import deal_tables
    from federated.study.experiment import Experiment
    from federated.study.settings import MARK

    settings = Experiment.read(experiment, changed(changes))
    for name, place in deal_tables(settings, folder).items():
        say(f"{name}: {place}")
    if settings.joined:
        _tell_sides(settings, folder)
        return
    kinds = [settings.model.kind, *(["profiles"] if settings.profile else [])]
    kinds += ["questions"] if settings.query else []
    options = [f"--analysis {kind}" for kind in kinds]
    if settings.profile or settings.query:
        options.append(f"--person {shlex.quote(settings.data.person or '')}")
    column, value = settings.data.test_column or MARK, settings.data.test_value
    options.append(f"--test {column}={1 if value is None else value}")
    options += [
        f"--cap {shlex.quote(f'{name}={limit:.12g}')}" for name, limit in settings.data.cap.items()
    ]
    say(f"for lab node init: {' '.join(options)}")


def _tell_sides(settings: Experiment, folder: Path) -> None:
    """What `lab node init` and `lab charter` are told of dealt tables of joined sides."""
    from federated.deployment.dealt_tables import DEALT
    from federated.study.settings import MARK

    names = {block.name or block.role: block for block in settings.joined}
    marked = settings.data.test > 0 or settings.data.test_column is not None
    trees = settings.model.kind == "trees"
    for name, block in names.items():
        peers = [n for n, other in names.items() if other.role != block.role]
        options = [f"--key {shlex.quote(','.join(block.keys))}"]
        options += [f"--product {shlex.quote(f'{peer}=*')}" for peer in peers]
        if trees:
            options.insert(0, "--analysis trees")
        if trees and block.role == "fund" and settings.protection.cuts == "told":
            options += [f"--cuts {shlex.quote(f'{peer}=*')}" for peer in peers]
        if marked and block.role == "insurer":
            column, value = settings.data.test_column or MARK, settings.data.test_value
            options.append(f"--test {column}={1 if value is None else value}")
        say(f"for lab node init {shlex.quote(name)}: {' '.join(options)}")
    say(f"{folder / DEALT}: the experiment on these tables")


@data.command()
@click.argument("file")
@click.option(
    "--contract", required=True, help="A contract file, or the name of a built-in source."
)
@click.option("--table", help="The table, where FILE is the address of a database.")
@click.option("--query", help="Or a query.")
@click.option("--encoding", help="Of a CSV that is not UTF-8, as gb18030 or cp1252.")
def check(
    file: str, contract: str, table: str | None, query: str | None, encoding: str | None
) -> None:
    """Check a table against a contract; every violation is listed.

    \b
    lab data check claims.csv --contract claims.toml
    lab data check postgresql://reader@host/claims --table visits --contract claims.toml
    """
    from lab.tables.sources import load

    rules = _contract(contract)
    source = load(path=file, contract=rules, table=table, query=query, encoding=encoding)
    say(f"{source.origin}: {len(source.frame):,} rows keep contract {rules.name}")


@click.group()
def market() -> None:
    """A simulated insurance market, with fraud planted in it, to study detectors in."""


@market.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--persons", type=int, default=50_000, show_default=True, help="Persons insured.")
@click.option("--insurers", type=int, default=4, show_default=True, help="Commercial insurers.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same bytes.")
def make(folder: Path, persons: int, insurers: int, seed: int) -> None:
    """Make a market: three years of claims, a folder for each party, the truth apart.

    \b
    lab market make my-market
    lab market make my-market --persons 1000000 --seed 7
    """
    from lab.market.make import make as make_market

    result = make_market(folder, persons=persons, insurers=insurers, seed=seed)
    table = plain_table("table", "rows", numbers=["rows"])
    for name, rows in sorted(result.rows.items()):
        table.add_row(name, f"{rows:,}")
    console = screen()
    console.print(table)
    place = f"\n{result.folder}, seed {seed}, {result.seconds:.1f} s"
    console.print(place, highlight=False, soft_wrap=True)
    what = f"what it is made from: lab data describe market --path {result.folder}"
    console.print(what, style="dim", soft_wrap=True)


@market.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def flags(folder: Path) -> None:
    """Which red flag finds which fraud: from a party's own tables, and from all of them.

    \b
    lab market flags my-market
    """
    from federated.cli.link import detection_table
    from federated.link.charter import LinkCharter
    from federated.link.told import told
    from lab.market.red_flags import INSURERS, PUBLIC, compare

    table = plain_table(
        *("fraud", "party", "frauds", "chance", "alone", "together"),
        numbers=("frauds", "chance", "alone", "together"),
    )
    comparison = compare(folder)
    for kind, party, frauds, *scores in comparison.itertuples(index=False):
        if party in (PUBLIC, INSURERS):
            who = "insurers, each" if party == INSURERS else "public insurer"
            table.add_row(kind, who, f"{frauds:,}", *(f"{x:.4f}" for x in scores))
    console = screen()
    console.print(table)
    console.print(
        "\naverage precision of one plain rule (lab/market/red_flags.py) on the party's claims; a party "
        "that is not listed has no such claims",
        style="dim",
    )
    console.print(
        "\nwhat payers find by telling each other (lab link), among all insurers' claims:"
    )
    console.print(detection_table(told(folder, LinkCharter.read())))


def _contract(name: str) -> Contract:
    from lab.tables.contracts import Contract
    from lab.tables.sources import built_in

    return Contract.read(Path(name)) if name.endswith(".toml") else built_in(name)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("table", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="A .csv, .csv.gz or .parquet file.")
@click.option("--contract", help="Check the table against this contract, or built-in source.")
@click.option("--query", help="Rows to read where the table is a database: SQL.")
@click.option("--encoding", help="Of a CSV that is not UTF-8, as gb18030 or cp1252.")
@click.option(
    "--reasons",
    is_flag=True,
    help="With the features that move each score most, by Shapley values (glm, trees).",
)
@click.option("--side", help="Score by the model of this side's columns alone: insurer or fund.")
@click.option(
    "--sides",
    type=click.Path(path_type=Path, file_okay=False),
    help="Across an insurer and the fund: what each keeps; made if there is none.",
)
@click.option(
    "--node",
    type=click.Path(path_type=Path, file_okay=False),
    help="As a side of its own, with --consent: its folder; lab link serve runs there.",
)
@click.option("--person", "persons", multiple=True, help="Whom, with --sides; signs at its desk.")
@click.option("--purpose", help="What for; default the first of the terms.")
@click.option(
    "--consent",
    "consents",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The file of a consent.",
)
@click.option("--terms", type=click.Path(path_type=Path), help="Bands, purposes, rations.")
def score(
    model: Path,
    table: str | None,
    sides: Path | None,
    node: Path | None,
    persons: tuple[str, ...],
    purpose: str | None,
    consents: tuple[Path, ...],
    terms: Path | None,
    **how: Any,
) -> None:
    """Score a table: its rows with a column "prediction", as CSV unless --out says otherwise.

    MODEL is a model's JSON file or a run's folder, TABLE a CSV or Parquet file or a database. With --sides,
    or --node, and no TABLE, the side that has the purpose asks the other for the band of a person's score.

    \b
    lab score runs/20261124-005153-visits-rand-hie-df28 claims.csv --out scored.csv
    lab score runs/20261124-005153-visits-rand-hie-df28 claims.csv --reasons
    lab score runs/20261129-180417-claims-1238 --sides trial --person 17 --purpose "offer a renewal"
    lab score insurer/results/e7f0505e233a4b17 --node insurer --consent consent.json
    lab score runs/20261129-180417-claims-1238 policies.parquet --side insurer
    """
    from lab.errors import ConfigurationError

    if node is not None:
        if table is not None or persons or sides is not None or terms or purpose or not consents:
            raise ConfigurationError("--node takes --consent, which says whom and what for")
        ask_scores(node, model, consents)
        return
    if sides is None:
        if table is None:
            raise ConfigurationError(
                "name a TABLE, or --sides and --person, or --node and --consent"
            )
        _score_table(model, table, **how)
        return
    if table is not None or not (persons or consents):
        raise ConfigurationError("--sides takes --person or --consent, and no table")
    tell_scores(model, sides, persons, consents, purpose, terms)


def _score_table(
    model: Path, table: str, *, out: Path | None, contract: str | None, side: str | None, **how: Any
) -> None:
    """The rows of a table with their scores, as CSV or in a file."""
    from lab.errors import ContractError
    from lab.models.files import model_file
    from lab.models.prediction import check_ending, predict, write

    if out is not None:
        check_ending(out)
    rules = _contract(contract) if contract else None
    try:
        frame, notes = predict(model_file(model, side), table, contract=rules, **how)
    except ContractError:
        if side is None and (model / "models" / "insurer.json").is_file():
            say("a table of one side's columns is scored with --side insurer, or fund", err=True)
        raise
    if out is None:
        say_table(frame.to_csv(index=False))
    else:
        write(frame, out)
    for note in notes:
        say(note, err=True)
