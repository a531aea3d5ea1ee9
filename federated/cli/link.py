"""`lab link`: what payers may tell each other, paid twice and known before."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from federated.cli import desk
from federated.cli.console import plain_table, say, say_json, screen
from federated.cli.desk import CHARTER, FILE, FOLDER, charter_of

if TYPE_CHECKING:
    from rich.table import Table

    from federated.link.charter import ConditionTerms, LinkCharter
    from federated.link.duplicates import Comparison
    from federated.link.planted import DetectionScore


@click.group()
def link() -> None:
    """What payers may tell each other: a claim paid twice, a condition known before."""


for _command in (
    desk.init_trial,
    desk.night,
    desk.serve,
    desk.ask,
    desk.signer,
    desk.consent,
    desk.receipt,
):
    link.add_command(_command)


@link.command()
@click.argument("folder", type=FOLDER)
@CHARTER
@click.option("--out", type=FOLDER, help="Write each payer's matches here, a CSV for each.")
@click.option(
    "--desk", type=FOLDER, help="A trial of lab link init: be its night, for all members at once."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def duplicates(
    folder: Path,
    charter_file: Path | None,
    out: Path | None,
    desk: Path | None,
    as_json: bool,
) -> None:
    """Find claims that more than one payer paid. FOLDER holds a folder with claims for each payer.

    \b
    lab link duplicates my-market
    lab link duplicates my-market --out matches
    lab link duplicates my-market --desk trial
    """
    from federated.deployment.link.trial import one_night
    from federated.link.duplicates import compared
    from federated.link.planted import is_market, payer_tables, twice_detected

    charter, start = charter_of(charter_file), time.perf_counter()
    tables = payer_tables(folder, charter)
    comparison = compared(tables, charter) if desk is None else one_night(desk, tables)
    if out is not None:
        _write(comparison, out)
    scores = twice_detected(folder, tables, comparison) if is_market(folder) else []
    if as_json:
        say_json(_content(comparison, scores))
        return
    _print_duplicates(comparison, scores)
    say()
    say(f"{len(tables)} payers, {time.perf_counter() - start:.1f} s")
    if desk is not None:
        say(f"next: lab link serve {desk}/MEMBER for each, and lab link ask")


def _write(comparison: Comparison, out: Path) -> None:
    from lab.files import write_whole

    out.mkdir(parents=True, exist_ok=True)
    for name, answer in comparison.payers.items():
        content = answer.matches.to_csv(index=False).encode()
        write_whole(out / f"{name}.csv", content, 0o600)


def _print_duplicates(comparison: Comparison, scores: Iterable[DetectionScore]) -> None:
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
    say()
    say("the coordinator counts, and reads nothing:")
    shared = plain_table("key", "grid", "payers", "names shared", numbers=("grid", "names shared"))
    for key, grid, payers, count in comparison.counts.itertuples(index=False):
        shared.add_row(key, str(grid), payers, f"{count:,}")
    console.print(shared)
    _print_detection("planted double_reimbursement (the truth of the market)", scores)


def _print_detection(title: str, scores: Iterable[DetectionScore]) -> None:
    rows = list(scores)
    if rows:
        say()
        say(f"{title}:")
        screen().print(detection_table(rows))


def detection_table(scores: Iterable[DetectionScore]) -> Table:
    """How much of planted fraud was found, line by line, and in money."""
    names = ("claims", "hits", "false alarms", "recall", "precision", "yuan", "yuan of hits")
    table: Table = plain_table("", *names, numbers=names)
    table.columns[0].no_wrap = True
    for score in scores:
        shares = (_share(score.recall), _share(score.precision))
        counts = (f"{n:,}" for n in (score.claims, score.hits, score.false_alarms))
        yuan = (f"{x:,.0f}" for x in (score.yuan, score.hit_yuan))
        table.add_row(score.name, *counts, *shares, *yuan)
    return table


def _share(value: float) -> str:
    return f"{value:.3f}" if value == value else "·"


def _content(comparison: Comparison, scores: Iterable[DetectionScore]) -> dict[str, Any]:
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
@CHARTER
@click.option("--insurer", help="Ask one question: who asks.")
@click.option("--person", help="About whom; the person signs at a desk of this trial.")
@click.option("--group", help="Which group of conditions.")
@click.option("--before", metavar="YYYY-MM-DD", help="Before which day.")
@click.option("--purpose", default="", help="What for; default the charter's first purpose.")
@click.option(
    "--look-up", type=click.Choice(["open", "oblivious"]), help="Instead of the charter's."
)
@click.option("--logs", type=FOLDER, help="Keep all sides' logs here, in a new folder.")
@click.option(
    "--consent", type=FILE, help="Ask as an insurer's node, by what lab link consent wrote."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def condition(
    folder: Path,
    charter_file: Path | None,
    look_up: str | None,
    logs: Path | None,
    consent: Path | None,
    as_json: bool,
    **question: str | None,
) -> None:
    """Ask the fund whether a condition was known before.

    FOLDER is an insurer's node, which asks by a consent; or a simulated market, whose sides all run in
    this process: all insurers' questions, or one.

    \b
    lab link condition insurer-1 --consent consent.json
    lab link condition my-market
    lab link condition my-market --insurer insurer-1 --person 91 --group diabetes --before 2022-03-01
    """
    import tempfile

    from lab.errors import ConfigurationError

    if consent is not None:
        desk.ask_condition(folder, consent, as_json)
        return
    if (folder / "node.toml").exists():
        raise ConfigurationError(f"{folder}: a node asks by a consent: --consent FILE")
    charter = charter_of(charter_file)
    terms = charter.condition
    if terms is None:
        raise ConfigurationError("the charter has no [condition], so nothing may be asked")
    terms = terms.model_copy(update={"look_up": look_up or terms.look_up})
    if logs is not None and logs.exists():
        raise ConfigurationError(f"{logs}: exists; name a new folder")
    with tempfile.TemporaryDirectory() as draft:
        place = logs or Path(draft)
        place.mkdir(parents=True, exist_ok=True)
        if any(question[name] for name in ("insurer", "person", "group", "before")):
            _one_question(folder, charter, terms, place, question, as_json)
        else:
            _all_questions(folder, terms, place, as_json)
    if logs is not None and not as_json:
        say(f"logs: lab link rates {logs / terms.fund}/log.jsonl, and lab audit verify {logs}")


def _all_questions(folder: Path, terms: ConditionTerms, logs: Path, as_json: bool) -> None:
    from federated.link.disclosure import disclosures

    start = time.perf_counter()
    outcome = disclosures(folder, terms, logs)
    answers = outcome.questions["answer"].value_counts().to_dict()
    if as_json:
        content = {"answers": answers, "persons": outcome.persons, "honest": outcome.honest}
        say_json(content | {"detected": [vars(each) for each in outcome.detections]})
        return
    counts = ", ".join(f"{answer} {count:,}" for answer, count in answers.items())
    say(f"look-up {terms.look_up}; answers by claim and group: {counts}")
    say(
        f"asked about {outcome.persons:,} persons, of whom {outcome.honest:,} had concealed nothing"
    )
    _print_detection("planted non_disclosure (the truth of the market)", outcome.detections)
    say()
    say(f"{time.perf_counter() - start:.1f} s")


def _one_question(
    folder: Path,
    charter: LinkCharter,
    terms: ConditionTerms,
    logs: Path,
    question: dict[str, str | None],
    as_json: bool,
) -> None:
    from contextlib import ExitStack

    from federated.link.disclosure import TODAY, DisclosureTrial
    from federated.link.keys import one_identifier
    from lab.errors import ConfigurationError

    absent = [name for name in ("insurer", "person", "group", "before") if not question[name]]
    if absent:
        raise ConfigurationError(f"one question needs --{absent[0]} too")
    person = one_identifier(str(question["person"]), charter.spelling.get("person", "normal"))
    before, group = desk.day_of(str(question["before"])), str(question["group"])
    insurer, purpose = str(question["insurer"]), question["purpose"] or ""
    with ExitStack() as stack:
        trial = DisclosureTrial(folder, terms, logs, stack)
        if insurer not in trial.insurers:
            raise ConfigurationError(f"--insurer {insurer}: there are {', '.join(trial.insurers)}")
        answer, (theirs, ours) = trial.ask(insurer, person, group, before, TODAY, purpose)
    if as_json:
        receipts = {"fund": theirs.model_dump(mode="json"), "insurer": ours.model_dump(mode="json")}
        say_json({"answer": answer, "receipts": receipts})
        return
    say(f"{group} on record before {before}: {answer}")
    seen = "the person and the answer" if terms.look_up == "open" else "neither person nor answer"
    say(f"{terms.fund} saw who asked, group, purpose and date, and {seen}")
    say(f"receipts of both, for the person: consent {ours.consent[:16]}…, {ours.day}")


@link.command("rates")
@click.argument("log", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def show_rates(log: Path, as_json: bool) -> None:
    """Who asked a payer how often about conditions and scores, by its log: questions, persons, groups,
    refusals, by day.

    \b
    lab link rates logs/public/log.jsonl
    """
    from federated.link.condition import RATES, STATISTIC, rates
    from federated.queries.person.sides import STATISTIC as SCORE
    from lab.audit.log_format import entries, read_lines

    lines = list(entries(read_lines(log)))
    rows = [(about, *row) for about in (STATISTIC, SCORE) for row in rates(lines, about)]
    if as_json:
        columns = ("about", "asker", "day", *RATES)
        say_json({"rates": [dict(zip(columns, row, strict=True)) for row in rows]})
        return
    names = [name.replace("_", " ") for name in RATES]
    table = plain_table("about", "asker", "day", *names, numbers=names)
    for about, asker, day, *counts in rows:
        table.add_row(about, asker, day, *(f"{count:,}" for count in counts))
    screen().print(table)
