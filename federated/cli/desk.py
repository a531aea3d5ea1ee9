"""`lab link` as members run it: the night, the process that answers, questions, consents."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from federated.cli.console import say, say_json, say_with_time

if TYPE_CHECKING:
    from datetime import date

    from federated.deployment.link.member import LinkFolder
    from federated.link.charter import LinkCharter
    from federated.link.services.night import NightRole
    from secure_agg.identity import Identity

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


def identity_of(folder: Path, name: str) -> Identity:
    """The identity that a role keeps in its folder of a trial; one is made where there is none."""
    from federated.deployment.enrolment import load_identity, new_identity

    file = folder / name / "identity.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    return load_identity(file) if file.exists() else new_identity(file, name)


@click.command("init")
@click.argument("folder", type=FOLDER)
@click.argument("market", type=FOLDER)
@CHARTER
@click.option("--port", default=9443, show_default=True, help="Where the exchange will listen.")
def init_trial(folder: Path, market: Path, charter_file: Path | None, port: int) -> None:
    """Make a trial's folders: an exchange, a node for each payer of MARKET, a desk where persons sign.

    Real members use lab exchange init, lab node init and lab charter link.

    \b
    lab link init trial my-market
    """
    from federated.deployment.link.trial import EXCHANGE, SIGNER, make_trial
    from federated.link.disclosure import market_records
    from federated.link.planted import claim_files

    charter, claims = charter_of(charter_file), claim_files(market)
    conditions = market_records(market) if charter.condition is not None else []
    make_trial(folder, claims, charter, conditions, port)
    say(f"{folder}: {EXCHANGE}, {', '.join(claims)}{f', {SIGNER}' if charter.condition else ''}")
    say("next, each in a terminal of its own:")
    say(f"  lab exchange serve {folder}/{EXCHANGE}")
    say(f"  lab link night {folder}/MEMBER      # {EXCHANGE} and each payer, once a night")
    say(f"  lab link serve {folder}/MEMBER      # then, for the day")


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--table", type=FILE, help="A payer's claims; default: link.claims of node.toml.")
@click.option("--patience", default=3600.0, show_default=True, help="Seconds to wait for others.")
def night(folder: Path, table: Path | None, patience: float) -> None:
    """Take part in a night's comparison; go on where it was after a stop.

    FOLDER is a payer's node or the exchange.

    \b
    lab link night exchange
    lab link night insurer-1
    """
    from federated.deployment.link.member import link_folder
    from federated.link.services.night import STATISTIC, NightRole
    from lab.errors import LabError
    from secure_agg.errors import SecureAggError

    place = link_folder(folder)
    with place.member() as member:
        try:
            role = NightRole(place.home, member, place.agreed, patience, say_with_time)
            with role.at_work():
                say(_compared(place, role, table))
                role.finish()
        except (LabError, SecureAggError) as error:
            member.log_refusal(STATISTIC, error)
            raise


def _compared(place: LinkFolder, role: NightRole, table: Path | None) -> str:
    """All steps of a role, and what it writes for its owner, in words."""
    from federated.link.planted import claims_of
    from federated.link.ring import COORDINATOR
    from federated.link.services.night import coordinator_night, payer_night
    from lab.errors import ConfigurationError
    from lab.files import write_whole

    if role.name == COORDINATOR:
        file = place.home / "counts.csv"
        counts = coordinator_night(role)
        write_whole(file, counts.to_csv(index=False).encode(), 0o600)
        return f"{len(role.terms.payers)} payers compared; {file}"
    if table is None and place.own.claims is None:
        raise ConfigurationError(f"{role.name}: needs --table, or link.claims in node.toml")
    claims = table or place.folder / str(place.own.claims)
    answer, file = payer_night(role, claims_of(claims, place.terms)), place.home / "matches.csv"
    write_whole(file, answer.matches.to_csv(index=False).encode(), 0o600)
    found, rows = len(answer.matches), answer.claims.rows
    return f"{role.name}: {found:,} of {rows:,} claims are at another payer too; {file}"


@click.command()
@click.argument("folder", type=FOLDER)
def serve(folder: Path) -> None:
    """Answer other members, and one's own desk, until Ctrl-C or SIGTERM.

    FOLDER is a payer's node or the exchange. A payer helps others to ask about single claims, by the
    lists of its last night; the fund answers whether a condition was known.

    \b
    lab link serve insurer-1
    """
    from threading import Event

    from federated.deployment.link.member import link_folder, services
    from federated.link.services.process import serve as answer

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    place = link_folder(folder)
    with place.member() as member:
        handlers, gaps = services(place, member)
        for gap in gaps:
            say(gap)
        say_with_time(f"{member.name} answers: {', '.join(handlers)}; stop with Ctrl-C")
        try:
            answer(member.line, handlers, Event(), say_with_time)
        except KeyboardInterrupt:
            say_with_time("stopped")


@click.command()
@click.argument("folder", type=FOLDER)
@click.argument("values", nargs=-1, required=True, metavar="COLUMN=VALUE…")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def ask(folder: Path, values: tuple[str, ...], as_json: bool) -> None:
    """Ask whether another payer has a claim, before it is paid. FOLDER is one's own node.

    \b
    lab link ask insurer-1 invoice=A17 provider=1060 admission_day=652 claimed=3896 person=1012
    """
    from federated.cli.console import pairs
    from federated.deployment.link.member import link_folder
    from federated.link.services.desk_service import asked

    place, claim = link_folder(folder), pairs(values)
    with place.line() as line:
        start = time.perf_counter()
        reply = asked(place.identity, line, claim)
        seconds = time.perf_counter() - start
    if as_json:
        say_json({"key": reply.key or None, "payers": reply.payers, "seconds": round(seconds, 4)})
        return
    whose = f": {', '.join(reply.payers)}" if reply.payers else ""
    if reply.key:
        say(f"another payer has this claim, by key '{reply.key}'{whose} ({seconds:.2f} s)")
    else:
        say(f"no other payer has this claim ({seconds:.2f} s)")


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--name", required=True, help="The desk's name in the charter.")
def signer(folder: Path, name: str) -> None:
    """Make a desk at which persons sign consents: its keys, in a new folder.

    \b
    lab link signer clinic --name clinic
    """
    import json

    from federated.deployment.link.signer import make_signer

    key = make_signer(folder, name).card.verifying.hex()
    say("for [condition] of the file of lab charter link, and for that of lab charter scores:")
    say(f'signers = {{ {json.dumps(name, ensure_ascii=False)} = "{key}" }}')
    say(f"put into {folder}: charter.json, charter.signatures.json")


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--insurer", required=True, help="Who may ask; a score the fund may ask for too.")
@click.option("--person", required=True, help="Who signs, and is asked about.")
@click.option("--group", help="Which group of conditions.")
@click.option("--before", metavar="YYYY-MM-DD", help="Before which day.")
@click.option("--model", help="Or a score: a run's folder at a side, or the model's digest.")
@click.option("--of", default="", help="A score: who is asked, where the asker has several pairs.")
@click.option("--purpose", default="", help="What for; default the charter's first purpose.")
@click.option("--days", default=7, show_default=True, help="How long it is good for.")
@click.option("--out", type=FILE, required=True, help="What the insurer gets: a new file.")
def consent(folder: Path, model: str | None, out: Path, **word: Any) -> None:
    """Sign for a person that one question may be asked, once. FOLDER is a desk's.

    \b
    lab link consent clinic --insurer insurer-1 --person 91 --group diabetes --before 2022-03-01 \\
      --out consent.json
    lab link consent clinic --insurer insurer-1 --person 91 --model insurer-1/results/e7f0505e233a4b17 \\
      --purpose "offer a renewal" --out consent.json
    """
    from lab.errors import ConfigurationError

    if out.exists():
        raise ConfigurationError(f"{out}: exists; name a new file")
    of_condition = word["group"] is not None and word["before"] is not None
    if (model is None) != of_condition or (model is not None and (word["group"] or word["before"])):
        raise ConfigurationError("needs --group and --before, or --model alone")
    if model is None:
        _sign_question(folder, out, **word)
    else:
        _sign_score(folder, out, model, **word)


def _sign_question(
    folder: Path, out: Path, *, group: str, before: str, of: str, **word: Any
) -> None:
    """A consent to one question about a condition."""
    from federated.deployment.link.signer import sign_question
    from lab.errors import ConfigurationError
    from lab.files import canonical, write_whole

    if of:
        raise ConfigurationError("--of is for a score; conditions are asked of the charter's fund")
    signed = sign_question(folder, group=group, before=day_of(before), today=_today(), **word)
    write_whole(out, canonical(signed.model_dump(mode="json")) + b"\n", 0o600)
    said = signed.consent
    say(f"{out}: {said.insurer} may ask {said.fund} once, until {said.expires}, to {said.purpose}:")
    say(f"{said.group} on record before {said.before}?")


def _sign_score(
    folder: Path,
    out: Path,
    model: str,
    *,
    insurer: str,
    of: str,
    group: None,
    before: None,
    **word: Any,
) -> None:
    """A consent to one score."""
    from federated.deployment.link.signer import sign_score
    from lab.files import canonical, write_whole

    digest = digest_of(model)
    signed = sign_score(folder, asker=insurer, asked=of, model=digest, today=_today(), **word)
    write_whole(out, canonical(signed.model_dump(mode="json")) + b"\n", 0o600)
    say(
        f"{out}: {signed.insurer} may ask {signed.fund} once, until {signed.expires}, to {signed.purpose}:"
    )
    say(f"the score by model {digest[:16]}")


def digest_of(model: str) -> str:
    """The digest of a model: itself, or that of the model in a run's folder. Raises ConfigurationError."""
    from lab.errors import ConfigurationError
    from lab.models.files import digest, model_file

    if len(model) == 64 and set(model) <= set("0123456789abcdef"):
        return model
    try:
        return digest(model_file(Path(model)).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{model}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{model}: is no model's file") from None


def _today() -> date:
    from datetime import UTC, datetime

    return datetime.now(UTC).date()


def ask_scores(folder: Path, model: Path, consents: tuple[Path, ...]) -> None:
    """Scores that a node asks for by consents, a line for each. Exit code 1 if none was told."""
    from federated.cli.console import plain_table, screen
    from federated.deployment.folders import SCORES_FOLDER
    from federated.deployment.link.member import link_folder
    from federated.queries.person.service import RECEIPTS, asked_score
    from federated.queries.person.trial import read_consent
    from lab.errors import ConfigurationError, LabError, PolicyError
    from secure_agg.errors import SecureAggError

    place, digest, told = link_folder(folder), digest_of(str(model)), 0
    words = {file: read_consent(file) for file in consents}
    for file, word in words.items():
        if word.group != digest:
            raise ConfigurationError(
                f"{file}: is for scores by model {word.group[:16]}, not {digest[:16]}"
            )
    table = plain_table("person", "consent", "score")
    with place.line() as line:
        for file, word in words.items():
            try:
                answer = asked_score(place.identity, line, word)
                again = f" (told on {answer.asker.day})" if answer.before else ""
                said, told = f"{answer.score}{again}", told + 1
            except (LabError, SecureAggError) as error:
                said = f"refused: {error}" if isinstance(error, PolicyError) else str(error)
            table.add_row(word.person, str(file), said)
    console = screen()
    console.print(table)
    receipts = place.home / SCORES_FOLDER / RECEIPTS
    console.print(f"\nby model {digest[:16]}, the columns of both sides", style="dim")
    console.print(f"receipts of both, for the person: {receipts}", style="dim")
    if not told:
        raise SystemExit(1)


def ask_condition(folder: Path, file: Path, as_json: bool) -> None:
    """One question of an insurer's node, by the consent of a file."""
    from federated.deployment.link.member import link_folder
    from federated.link.services.condition_service import RECEIPTS, asked_about, read_question

    place, signed = link_folder(folder), read_question(file)
    with place.line() as line:
        told = asked_about(place.identity, line, signed)
    word, receipts = signed.consent, place.home / RECEIPTS / f"{signed.consent.digest}.json"
    if as_json:
        say_json(told.model_dump(mode="json"))
        return
    again = f" (told on {told.insurer.day}; nothing was asked again)" if told.before else ""
    say(f"{word.group} on record before {word.before}: {told.answer}{again}")
    say(f"receipts of both, for the person: {receipts}")


@click.command()
@click.argument("file", type=FILE)
@click.option("--charter", "charter_file", required=True, type=FILE)
def receipt(file: Path, charter_file: Path) -> None:
    """Check the receipts of one answer, as a person gets them: what the insurer and the fund signed.

    \b
    lab link receipt receipts/3f2a….json --charter charter.json
    """
    from federated.deployment.link.signer import is_of_score, read_receipts, read_score_receipts

    if is_of_score(file):
        score = read_score_receipts(file, charter_file)
        ours, theirs = score.asker, score.asked
        say(f"{ours.by} asked {theirs.by} on {theirs.day}, to {ours.purpose}:")
        say(f"the score by model {ours.model[:16]}: {score.score}")
        say(f"signed by both; {theirs.by} saw neither score nor band; consent {ours.consent[:16]}…")
        return
    told = read_receipts(file, charter_file)
    word, fund = told.insurer, told.fund
    say(f"{word.by} asked {fund.by} on {fund.day}, to {word.purpose}:")
    say(f"{word.group} on record before {word.before}? {told.answer}")
    seen = "saw neither person nor answer" if fund.answer == "not told" else "answered so"
    say(f"signed by both; {fund.by} {seen}; consent {word.consent[:16]}…")


def day_of(text: str) -> date:
    from datetime import date

    from lab.errors import ConfigurationError

    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"--before {text}: needs a day, as 2022-03-01") from None
