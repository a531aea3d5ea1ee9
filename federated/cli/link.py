"""`lab link`: what payers may tell each other, paid twice and known before."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from federated.cli.console import plain_table, say, say_json, screen

if TYPE_CHECKING:
    from federated.link.charter import LinkCharter
    from federated.link.duplicates import Comparison
    from federated.link.planted import Detection

FOLDER = click.Path(path_type=Path, file_okay=False)
CHARTER = click.option(
    "--charter",
    "charter_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What the payers signed: keys, caps, groups, rates. Default: that of the simulated market.",
)


@click.group()
def link() -> None:
    """What payers may tell each other: a claim paid twice, a condition known before."""


def _charter(file: Path | None) -> LinkCharter:
    from federated.link.charter import SHIPPED, LinkCharter

    return LinkCharter.read(file or SHIPPED)


@link.command()
@click.argument("folder", type=FOLDER)
@CHARTER
@click.option("--out", type=FOLDER, help="Write each payer's matches here, a CSV for each.")
@click.option(
    "--desk", "desk_folder", type=FOLDER, help="Keep what answers single claims tomorrow."
)
@click.option("--port", default=7101, show_default=True, help="Of the first service of the desk.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def duplicates(
    folder: Path,
    charter_file: Path | None,
    out: Path | None,
    desk_folder: Path | None,
    port: int,
    as_json: bool,
) -> None:
    """Find claims that more than one payer paid. FOLDER holds a folder with claims for each payer.

    \b
    lab link duplicates my-market
    lab link duplicates my-market --out matches --desk desk
    """
    from federated.link.duplicates import compared
    from federated.link.planted import is_market, payer_tables, twice_detected

    charter, start = _charter(charter_file), time.perf_counter()
    tables = payer_tables(folder, charter)
    if desk_folder is None:
        comparison = compared(tables, charter)
    else:
        comparison = _with_desk(tables, charter, desk_folder, port)
    if out is not None:
        _write(comparison, out)
    scores = twice_detected(folder, tables, comparison) if is_market(folder) else []
    if as_json:
        say_json(_content(comparison, scores))
        return
    _print_duplicates(comparison, scores)
    say(f"\n{len(tables)} payers, {time.perf_counter() - start:.1f} s")
    if desk_folder is not None:
        say(f"desk: lab link serve {desk_folder}/PAYER for each, and lab link ask")


def _with_desk(tables: Any, charter: LinkCharter, folder: Path, port: int) -> Comparison:
    """The comparison, and a folder for each role, whose identity is made where it has none."""
    from federated.deployment.enrolment import load_identity, new_identity
    from federated.link.night import desk_of
    from federated.link.ring import COORDINATOR

    cards, addresses = {}, {}
    for at, name in enumerate([*tables, COORDINATOR]):
        home = folder / name
        home.mkdir(parents=True, exist_ok=True)
        file = home / "identity.json"
        identity = load_identity(file) if file.exists() else new_identity(file, name)
        cards[name], addresses[name] = identity.card, f"127.0.0.1:{port + at}"
    return desk_of(tables, charter, folder, cards, addresses)


def _write(comparison: Comparison, out: Path) -> None:
    from lab.files import write_whole

    out.mkdir(parents=True, exist_ok=True)
    for name, answer in comparison.payers.items():
        content = answer.matches.to_csv(index=False).encode()
        write_whole(out / f"{name}.csv", content, 0o600)


def _print_duplicates(comparison: Comparison, scores: Iterable[Detection]) -> None:
    console = screen()
    names = ("claims", "unpaid", "left out", "repeated", "no key", "another has")
    table = plain_table("payer", *names, numbers=names)
    for name, answer in comparison.payers.items():
        claims = answer.claims
        counts = (claims.rows, claims.unpaid, claims.without)
        repeated = max(count.repeated for count in claims.counts)
        without_key = max(count.missing + count.invalid for count in claims.counts)
        cells = (*counts, repeated, without_key, len(answer.matches))
        table.add_row(name, *(f"{n:,}" for n in cells))
    console.print(table)
    say("\nthe coordinator counts, and reads nothing:")
    shared = plain_table("key", "grid", "payers", "names shared", numbers=("grid", "names shared"))
    for key, grid, payers, count in comparison.counts.itertuples(index=False):
        shared.add_row(key, str(grid), payers, f"{count:,}")
    console.print(shared)
    _print_detection("planted double_reimbursement (the truth of the market)", scores)


def _print_detection(title: str, scores: Iterable[Detection]) -> None:
    rows = list(scores)
    if not rows:
        return
    say(f"\n{title}:")
    names = ("claims", "hits", "false alarms", "recall", "precision", "yuan", "yuan of hits")
    table = plain_table("", *names, numbers=names)
    for score in rows:
        shares = (_share(score.recall), _share(score.precision))
        counts = (f"{n:,}" for n in (score.claims, score.hits, score.false_alarms))
        yuan = (f"{x:,.0f}" for x in (score.yuan, score.hit_yuan))
        table.add_row(score.name, *counts, *shares, *yuan)
    screen().print(table)


def _share(value: float) -> str:
    return f"{value:.3f}" if value == value else "·"


def _content(comparison: Comparison, scores: Iterable[Detection]) -> dict[str, Any]:
    """What `--json` prints: no row of a claim."""
    return {
        "payers": {
            name: {
                "claims": answer.claims.rows,
                "unpaid": answer.claims.unpaid,
                "left_out": answer.claims.without,
                "keys": [vars(count) for count in answer.claims.counts],
                "matches": answer.matches["key"].value_counts().to_dict(),
            }
            for name, answer in comparison.payers.items()
        },
        "coordinator": comparison.counts.to_dict("records"),
        "detected": [vars(score) for score in scores],
    }


@link.command()
@click.argument("folder", type=FOLDER)
def serve(folder: Path) -> None:
    """Answer the other payers' questions about single claims, and one's own desk's, until stopped.

    FOLDER is a role's, written by lab link duplicates --desk.

    \b
    lab link serve desk/insurer-1
    """
    from federated.deployment.enrolment import load_identity
    from federated.link.desk_folder import read_desk
    from federated.link.service import DeskService, served

    desk, identity = read_desk(folder), load_identity(folder / "identity.json")
    service = DeskService(desk, identity)
    with service.log, served(service) as server:
        say(f"{service.name} answers at {desk.shared.addresses[service.name]}; stop with Ctrl-C")
        try:
            server.serve_forever(0.1)
        except KeyboardInterrupt:
            say("stopped")


@link.command()
@click.argument("folder", type=FOLDER)
@click.argument("values", nargs=-1, required=True, metavar="COLUMN=VALUE…")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def ask(folder: Path, values: tuple[str, ...], as_json: bool) -> None:
    """Ask whether another payer has a claim, before it is paid. FOLDER is one's own desk.

    \b
    lab link ask desk/insurer-1 invoice=A17 provider=1060 admission_day=652 claimed=3896 person=1012
    """
    from federated.cli.options import pairs
    from federated.deployment.enrolment import load_identity
    from federated.link.desk_folder import read_desk
    from federated.link.service import asked

    desk = read_desk(folder)
    name, start = load_identity(folder / "identity.json").card.name, time.perf_counter()
    reply = asked(desk, name, pairs(values))
    seconds = time.perf_counter() - start
    if as_json:
        say_json({"key": reply.key or None, "payers": reply.payers, "seconds": round(seconds, 4)})
        return
    whose = f": {', '.join(reply.payers)}" if reply.payers else ""
    if reply.key:
        say(f"another payer has this claim, by key '{reply.key}'{whose} ({seconds:.2f} s)")
    else:
        say(f"no other payer has this claim ({seconds:.2f} s)")
