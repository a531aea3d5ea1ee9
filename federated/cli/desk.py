"""`lab link` at the desk: agree, compare at night, answer and ask about single claims."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from federated.cli.console import say, say_json

if TYPE_CHECKING:
    from federated.link.charter import LinkCharter
    from secure_agg.identity import Card, Identity

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
CHARTER = click.option(
    "--charter",
    "charter_file",
    type=FILE,
    help="What the payers signed: keys, caps, groups, rates. Default: that of the simulated market.",
)


def charter_of(file: Path | None) -> LinkCharter:
    from federated.link.charter import SHIPPED, LinkCharter

    return LinkCharter.read(file or SHIPPED)


def roles_of(
    folder: Path, payers: tuple[str, ...], port: int
) -> tuple[dict[str, Card], dict[str, str]]:
    """Cards and addresses of a desk's roles; a role without an identity gets one."""
    from federated.link.ring import COORDINATOR

    cards, addresses = {}, {}
    for at, name in enumerate([*payers, COORDINATOR]):
        cards[name], addresses[name] = identity_of(folder, name).card, f"127.0.0.1:{port + at}"
    return cards, addresses


def identity_of(folder: Path, name: str) -> Identity:
    """The identity that a role keeps in its folder of a trial; one is made where there is none."""
    from federated.deployment.enrolment import load_identity, new_identity

    file = folder / name / "identity.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    return load_identity(file) if file.exists() else new_identity(file, name)


@click.command("init")
@click.argument("folder", type=FOLDER)
@click.argument("payers", nargs=-1, required=True)
@CHARTER
@click.option("--port", default=7101, show_default=True, help="Of the first service of the desk.")
def init_desk(folder: Path, payers: tuple[str, ...], charter_file: Path | None, port: int) -> None:
    """Make a trial's folders: for each payer and the coordinator its identity and what was agreed on.

    \b
    lab link init desk public insurer-1 insurer-2
    """
    from federated.link.night import agreed_terms
    from lab.errors import ConfigurationError
    from lab.files import canonical, write_whole

    if folder.exists():
        raise ConfigurationError(f"{folder}: exists; name a new folder")
    charter = charter_of(charter_file)
    cards, addresses = roles_of(folder, payers, port)
    shared = agreed_terms(charter, payers, cards, addresses)
    _ = shared.terms, shared.roster()
    for name in cards:
        write_whole(folder / name / "desk.json", canonical(shared.model_dump(mode="json")))
    say(f"{folder}: {', '.join(cards)}")
    say(f"next, for each: lab link night {folder}/ROLE --post {folder}/post --table CLAIMS")


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--post", required=True, type=FOLDER, help="Where all roles' letters lie.")
@click.option("--table", type=FILE, help="A payer's claims.")
@click.option("--patience", default=3600.0, show_default=True, help="Seconds to wait for a letter.")
def night(folder: Path, post: Path, table: Path | None, patience: float) -> None:
    """Take part in a night's comparison as one role; go on where it was after a stop.

    \b
    lab link night desk/coordinator --post desk/post
    lab link night desk/insurer-1 --post desk/post --table my-market/insurer-1/claims.parquet
    """
    from federated.deployment.enrolment import load_identity
    from federated.link.night import NightRole, coordinator_night, payer_night
    from federated.link.planted import claims_of
    from federated.link.ring import COORDINATOR
    from federated.link.service import party_log
    from lab.errors import ConfigurationError, LabError
    from lab.files import write_whole
    from secure_agg.errors import SecureAggError

    identity = load_identity(folder / "identity.json")
    name = identity.card.name
    if (table is None) != (name == COORDINATOR):
        raise ConfigurationError(f"{name}: a payer needs --table, the coordinator takes none")
    with party_log(identity, folder) as log:
        try:
            role = NightRole(folder, identity, post, log, patience)
            if table is None:
                counts = coordinator_night(role)
                write_whole(folder / "counts.csv", counts.to_csv(index=False).encode(), 0o600)
                say(f"{name}: {len(role.terms.payers)} payers compared; {folder / 'counts.csv'}")
                return
            answer = payer_night(role, claims_of(table, role.shared.charter))
        except (LabError, SecureAggError) as error:
            by = ", ".join(getattr(error, "culprits", ())) or name
            rule = getattr(error, "rule", "letter")
            log.append("refusal", statistic="link_night", rule=rule, text=str(error), by=by)
            raise
    content = answer.matches.to_csv(index=False).encode()
    write_whole(folder / "matches.csv", content, 0o600)
    say(
        f"{name}: {len(answer.matches):,} of {answer.claims.rows:,} claims are at another payer too; "
        f"{folder / 'matches.csv'}"
    )


@click.command()
@click.argument("folder", type=FOLDER)
def serve(folder: Path) -> None:
    """Answer the other payers' questions about single claims, and one's own desk's, until stopped.

    FOLDER is a role's, after lab link night or lab link duplicates --desk.

    \b
    lab link serve desk/insurer-1
    """
    from federated.deployment.enrolment import load_identity
    from federated.link.desk_folder import read_desk
    from federated.link.service import DeskService, served

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    desk, identity = read_desk(folder), load_identity(folder / "identity.json")
    service = DeskService(desk, identity)
    with service.log, served(service) as server:
        say(f"{service.name} answers at {desk.shared.addresses[service.name]}; stop with Ctrl-C")
        try:
            server.serve_forever(0.1)
        except KeyboardInterrupt:
            say("stopped")


@click.command()
@click.argument("folder", type=FOLDER)
@click.argument("values", nargs=-1, required=True, metavar="COLUMN=VALUE…")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def ask(folder: Path, values: tuple[str, ...], as_json: bool) -> None:
    """Ask whether another payer has a claim, before it is paid. FOLDER is one's own desk.

    \b
    lab link ask desk/insurer-1 invoice=A17 provider=1060 admission_day=652 claimed=3896 person=1012
    """
    from federated.cli.console import pairs
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
