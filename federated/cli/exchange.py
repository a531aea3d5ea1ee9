"""`lab exchange` and `lab node`: parties that run processes of their own."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from federated.cli.charter import AnalysisName
from federated.cli.console import plain_table, print_heading, say, say_with_time, screen
from federated.cli.keys import FILE, FOLDER, unlock

if TYPE_CHECKING:
    from federated.link.consent import ConsentToken

# The coordinator.


@click.group()
def exchange() -> None:
    """The coordinator's exchange: set up, admit nodes, serve."""


@exchange.command("init")
@click.argument("folder", type=FOLDER)
@click.option("--name", required=True, help="The coordinator's name among the members.")
@click.option("--address", required=True, metavar="HOST:PORT", help="Where nodes will call.")
@click.option(
    "--listen",
    metavar="HOST",
    help="The interface to open the public listener on, without a port; default: all of them.",
)
@click.option("--certificate", type=FILE, help="The server's certificate, brought along, PEM.")
@click.option("--key", type=FILE, help="Its private key.")
@click.option("--authority", type=FILE, help="The certificate of who issues those of nodes.")
def init_exchange(
    folder: Path,
    name: str,
    address: str,
    listen: str | None,
    certificate: Path | None,
    key: Path | None,
    authority: Path | None,
) -> None:
    """Make an exchange: keys, a small certificate authority, exchange.toml.

    \b
    lab exchange init exchange --name exchange --address exchange.example:9443
    """
    from federated.deployment.coordinator import exchange as places
    from lab.errors import ConfigurationError

    tls_files = None
    if certificate and key and authority:
        tls_files = certificate, key, authority
    elif certificate or key or authority:
        raise ConfigurationError("--certificate, --key and --authority: give all three, or none")
    enrolment = places.init(folder, name, address, listen, tls_files)
    say(f"{folder}: exchange {name}, fingerprint {enrolment.member.fingerprint}")
    say(f"next: lab charter init {folder}/charter.json --coordinator {folder}/enrolment.json …")


@exchange.command("register")
@click.argument("folder", type=FOLDER)
@click.argument("enrolments", nargs=-1, required=True, type=FILE)
@click.option("--certificate", type=FILE, help="Of one node, by an authority elsewhere, PEM.")
def register_nodes(folder: Path, enrolments: tuple[Path, ...], certificate: Path | None) -> None:
    """Admit nodes by their enrolment files; each admission goes back to its node.

    \b
    lab exchange register exchange ping-an.enrolment.json
    """
    from federated.deployment.coordinator import exchange as places
    from federated.deployment.enrolment import Enrolment
    from lab.errors import ConfigurationError

    if certificate is not None and len(enrolments) != 1:
        raise ConfigurationError("--certificate: is of one node; register that node alone")
    for path in enrolments:
        enrolment = Enrolment.read(path)
        admission = places.register(folder, enrolment, certificate_file=certificate)
        say(f"{enrolment.member.name}: compare {enrolment.member.fingerprint}")
        say(f"  hand {admission} to it, as admission.json")


@exchange.command("revoke")
@click.argument("folder", type=FOLDER)
@click.argument("name")
def revoke_node(folder: Path, name: str) -> None:
    """Let a node in no more, from its next request on.

    \b
    lab exchange revoke exchange ping-an
    """
    from federated.deployment.coordinator import exchange as places

    places.revoke(folder, name)
    say(f"{name}: revoked")


@exchange.command("serve")
@click.argument("folder", type=FOLDER)
def serve_exchange(folder: Path) -> None:
    """Serve nodes until Ctrl-C or SIGTERM.

    \b
    lab exchange serve exchange
    """
    from federated.deployment.coordinator import exchange as places

    places.serve(folder, lambda address: say_with_time(f"exchange is open at {address}"))
    say_with_time("exchange closed")


@exchange.command("status")
@click.argument("folder", type=FOLDER)
def tell_status(folder: Path) -> None:
    """Show who is registered, who is revoked, what runs there are.

    \b
    lab exchange status exchange
    """
    from federated.deployment.coordinator import exchange as places
    from lab.files import read_json

    settings = places.Settings.read(folder)
    exchange_state = "open" if (folder / places.LOCAL_SOCKET).exists() else "closed"
    console = screen()
    print_heading(console, settings.name, f" at {settings.address}, {exchange_state}")
    gone = places.revoked(folder)
    table = plain_table("member", "role", "standing", "fingerprint")
    for admission in places.admitted(folder).values():
        member = admission.member
        since = gone.get(member.name)
        standing = f"revoked {since}" if since else "registered"
        table.add_row(member.name, member.role, standing, member.fingerprint)
    console.print(table)
    for path in sorted((folder / places.RUNS).glob("*/run.json")):
        record = read_json(path)
        state = f"ended {record['end']}" if record["end"] else "unfinished"
        console.print(f"run {record['run']}  {state}", highlight=False)
        for reason in record["absent"].values():
            console.print(f"  without {reason}", highlight=False)


# An insurer.


@click.group()
def node() -> None:
    """An insurer's or a supervisor's own process: set up, check, join."""


@node.command("init")
@click.argument("folder", type=FOLDER)
@click.option("--name", required=True, help="The party's name among the members.")
@click.option("--role", type=click.Choice(["public", "commercial", "supervisor"]), required=True)
@click.option("--data", "path", help="A file, an SQLAlchemy URL, or a built-in source.")
@click.option("--contract", help="The contract file of the data.")
@click.option("--encoding", help="Of a CSV that is not UTF-8, as gb18030 or cp1252.")
@click.option("--person", help='The column of who a row belongs to; "" if each row is a person\'s.')
@click.option("--test", metavar="COLUMN=VALUE", help="The mark of rows for testing.")
@click.option(
    "--cap",
    "caps",
    metavar="COLUMN=LIMIT",
    multiple=True,
    help="Larger values are lowered to it in every model; may be repeated.",
)
@click.option(
    "--analysis",
    "analyses",
    type=AnalysisName(),
    multiple=True,
    default=["glm"],
    show_default=True,
    help="What it takes part in; may be repeated.",
)
@click.option("--key", metavar="COLUMN[,COLUMN]", help="What names a person, at a joined side.")
@click.option(
    "--product",
    "products",
    metavar="NAME=COLUMN,COLUMN|*",
    multiple=True,
    help="Columns that may enter products with another side, * for all; may be repeated.",
)
@click.option(
    "--cuts",
    metavar="NAME=COLUMN,COLUMN|*",
    multiple=True,
    help="The fund: columns of which trees may tell an insurer cuts; none unless named; may be repeated.",
)
@click.option(
    "--scores",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Scores of single persons that each other side may be told in 30 days, at a joined side.",
)
def init_node(
    folder: Path,
    path: str | None,
    contract: str | None,
    test: str | None,
    caps: tuple[str, ...],
    key: str | None,
    products: tuple[str, ...],
    cuts: tuple[str, ...],
    scores: int,
    **own: Any,
) -> None:
    """Make a node: keys, a commented node.toml, the enrolment to hand over.

    \b
    lab node init ping-an --name ping-an --role commercial --data claims.parquet --contract claims-v1.toml
    lab node init ping-an … --person member --test held_out=1 --analysis glm --analysis questions
    lab node init ping-an … --key member --product 'fund=*'
    """
    from federated.deployment.node.rules import settings as node_folder
    from federated.queries.person.terms import OwnScores
    from lab.errors import ConfigurationError

    if own["role"] != "supervisor" and not path:
        raise ConfigurationError("--data: an insurer's node needs to know where its rows are")
    if path and "://" not in path and Path(path).exists():
        path = str(Path(path).resolve())
    if contract and Path(contract).exists():
        contract = str(Path(contract).resolve())
    by_peer = _by_peer(key, {"--product": products, "--cuts": cuts})
    joined = None
    if key:
        columns = {"products": by_peer["--product"], "cuts": by_peer["--cuts"]}
        joined = node_folder.OwnPairs(key=tuple(key.split(",")), **columns)
    elif scores:
        raise ConfigurationError("--scores: is for a joined side, which has a --key")
    enrolment = node_folder.init(
        folder,
        path=path,
        contract=contract,
        test=None if test is None else _mark(test),
        caps=dict(map(_cap, caps)),
        joined=joined,
        scores=OwnScores(a_month=scores) if scores else None,
        **own,
    )
    say(f"{folder}: node of {enrolment.member.name}, fingerprint {enrolment.member.fingerprint}")
    say(f"hand {folder}/enrolment.json to the coordinator")
    say(f"put into {folder}: charter.json, charter.signatures.json, admission.json")


def _mark(text: str) -> tuple[str, str | int]:
    """The column and the value that mark rows for testing."""
    from lab.errors import ConfigurationError

    column, equals, value = text.partition("=")
    if not equals or not column:
        raise ConfigurationError(f"--test {text}: needs the form COLUMN=VALUE, as held_out=1")
    return column, int(value) if value.lstrip("-").isdigit() else value


def _by_peer(
    key: str | None, options: dict[str, tuple[str, ...]]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """The columns that each option names for another side."""
    from lab.errors import ConfigurationError

    for option, texts in options.items():
        if texts and not key:
            raise ConfigurationError(f"{option}: goes with --key, what names a person")
    return {
        option: dict(_columns_of(text, option) for text in texts)
        for option, texts in options.items()
    }


def _columns_of(text: str, option: str) -> tuple[str, tuple[str, ...]]:
    """Another side, and the columns that an option names for it."""
    from lab.errors import ConfigurationError

    name, _, columns = text.partition("=")
    if not name or not all(columns.split(",")):
        raise ConfigurationError(f"{option} {text}: needs the form NAME=COLUMN,COLUMN or NAME=*")
    return name, tuple(columns.split(","))


def _cap(text: str) -> tuple[str, float]:
    """A column and its largest value."""
    from lab.errors import ConfigurationError

    column, _, limit = text.rpartition("=")
    try:
        if column and isfinite(float(limit)):
            return column, float(limit)
    except ValueError:
        pass
    raise ConfigurationError(f"--cap {text}: needs the form COLUMN=LIMIT, as amount=50000")


@node.command("check")
@click.argument("folder", type=FOLDER)
def check_node(folder: Path) -> None:
    """Check a node: what is wrong, and what to do about it, line by line.

    \b
    lab node check ping-an
    """
    from federated.deployment.node.checks import examine

    findings = examine(folder)
    for finding in findings:
        mark = click.style("ok  ", fg="green") if finding.good else click.style("no  ", fg="red")
        first, *others = finding.text.split("\n")
        say(f" {finding.what:<14}{first}", mark=mark)
        for line in others:
            say(line, mark=" " * 19)
    if not all(finding.good for finding in findings):
        raise SystemExit(1)


@node.command("join")
@click.argument("folder", type=FOLDER)
def join_node(folder: Path) -> None:
    """Take part until Ctrl-C or SIGTERM; comes back by itself when the line breaks.

    \b
    lab node join ping-an
    """
    from federated.deployment.node.process import Node

    Node(folder, say_with_time, lambda: unlock(folder)).serve()
    say_with_time("stopped")


@node.command("requests")
@click.argument("folder", type=FOLDER)
def list_requests(folder: Path) -> None:
    """Show what waits for a person's approval: plans, each with all that it holds, and questions.

    \b
    lab node requests ping-an
    """
    from federated.deployment.folders import SCORES_FOLDER, charter_of, identity_of
    from federated.deployment.node.approval import request_lines, waiting
    from federated.link.services.approvals import question_lines

    plans, questions = waiting(folder), _questions(folder)
    if not plans and not questions:
        say("nothing waits for approval")
        return
    charter = charter_of(folder, identity_of(folder).card.name)
    look_up = charter.link.condition.look_up if charter.link and charter.link.condition else ""
    blocks = [(digest, request_lines(plan, charter)) for digest, plan in plans.items()]
    blocks += [
        (digest, question_lines(consent, look_up, score=place.name == SCORES_FOLDER))
        for digest, (place, consent) in questions.items()
    ]
    for digest, lines in blocks:
        for line in lines:
            say(line)
        say(f"  to approve: lab node approve {folder} {digest[:12]} --by NAME")
        say()


def _questions(folder: Path) -> dict[str, tuple[Path, ConsentToken]]:
    """Questions about a condition or a score that wait for a person, and where, by digest."""
    from federated.deployment.folders import LINK_FOLDER, SCORES_FOLDER
    from federated.link.services.approvals import waiting_questions

    home = folder / LINK_FOLDER
    return {
        digest: (place, consent)
        for place in (home, home / SCORES_FOLDER)
        for digest, consent in waiting_questions(place).items()
    }


@node.command("approve")
@click.argument("folder", type=FOLDER)
@click.argument("digest")
@click.option("--by", required=True, help="Who approves, for the log.")
def approve_request(folder: Path, digest: str, by: str) -> None:
    """Approve a plan or a question, as lab node requests shows it; whoever asked asks again.

    \b
    lab node approve ping-an 3f2a90c1d4e5 --by 'Li Wei'
    """
    from federated.deployment.node.approval import approve
    from federated.link.services.approvals import approve_question

    places = {place for full, (place, _) in _questions(folder).items() if full.startswith(digest)}
    for place in places:
        say(f"approved {approve_question(place, digest, by)}")
    if not places:
        say(f"approved {approve(folder, digest, by)}")
