"""`lab query`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from federated.cli.console import (
    RUNS,
    WITHOUT,
    changed,
    leave_out,
    plain_table,
    say_json,
    say_table,
    screen,
)


@click.command()
@click.argument("question")
@click.option(
    "--experiment",
    default="rand_hie",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Whose data, parties and protection: an experiment file, or the name of a shipped one.",
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Override a key of it.")
@click.option(
    "--exchange",
    type=click.Path(path_type=Path, file_okay=False),
    help="Ask real parties: the folder of an exchange that is served.",
)
@WITHOUT
@click.option("--epsilon", type=float, help="Ask every party to add noise of this epsilon.")
@click.option("--delta", type=float, default=0.0, help="With a delta the noise is Gaussian.")
@click.option("--rows-per-person", type=int, default=1, help="Rows of a person that count.")
@click.option("--json", "form", flag_value="json", help="One JSON object and nothing else.")
@click.option("--csv", "form", flag_value="csv", help="The table alone, as CSV.")
@RUNS
def query(
    question: str,
    experiment: Path,
    changes: tuple[str, ...],
    exchange: Path | None,
    without: tuple[str, ...],
    epsilon: float | None,
    delta: float,
    rows_per_person: int,
    form: str | None,
    runs: Path,
) -> None:
    """Ask all parties a question in SQL; learn the total and nothing else.

    \b
    lab query "select idp, count(*), avg(mdvis) from rand_hie group by idp"
    lab query "select count(*), avg(disea) from rand_hie where hlthp = 1" --epsilon 0.5
    lab query "select idp, count(*) from rand_hie group by idp" --exchange exchange
    lab query "select fund.diabetes, count(*), sum(insurer.paid) from insurer join fund
      group by fund.diabetes" --experiment market_pair
    """
    from federated.queries.holdings import experiment_of
    from federated.run import ask
    from federated.study.result import with_names
    from lab.privacy.noise import Noise
    from lab.records import parse

    settings = experiment_of(experiment, changed(changes))
    noise = None
    if epsilon is not None:
        values = {"mechanism": "gaussian" if delta else "laplace", "epsilon": epsilon}
        values |= {"delta": delta, "rows_per_person": rows_per_person}
        noise = parse(Noise, values, where="noise")
    leave_out(without)
    answer = ask(settings, question, noise=noise, runs=runs, exchange=exchange, without=without)
    if form == "csv":
        say_table(with_names(answer).to_csv(index=False))
    elif form == "json":
        say_json(_answer_content(answer))
    else:
        _print_answer(answer, settings.protection.key_bits)


#: Rows of an answer that are printed; --csv has all of them.
ROWS_PRINTED = 60


def _answer_content(answer: Any) -> Any:
    from federated.study.result import with_names
    from federated.study.run_folder import plain

    table = {"rows": with_names(answer).astype(object).to_dict("records"), **answer.attrs}
    return plain(table)


def _print_answer(answer: Any, key_bits: int) -> None:
    from federated.study.result import with_names
    from lab.report.tables import shown

    console, attributes, rows = screen(), answer.attrs, with_names(answer)
    numbers = [name for name in rows.columns if rows[name].dtype.kind in "iuf"]
    table = plain_table(*map(str, rows.columns), numbers=map(str, numbers))
    for row in rows.head(ROWS_PRINTED).astype(object).to_numpy():
        table.add_row(*map(shown, row))
    console.print(table)
    if len(answer) > ROWS_PRINTED:
        console.print(f"… {len(answer) - ROWS_PRINTED:,} more rows; --csv prints all", style="dim")
    for name in ("reserve", "medians"):
        if name in attributes:
            line = ", ".join(f"{k} {shown(v)}" for k, v in attributes[name].items())
            console.print(line, highlight=False)
    if unpaid := attributes.get("unpaid"):
        origins = ", ".join(map(str, unpaid))
        console.print(f"nothing is paid yet of {origins}: no reserve, and none in the sum")
    for line in _footnotes(attributes, key_bits):
        console.print(line, style="dim", highlight=False, soft_wrap=True)


def _footnotes(attributes: dict[str, Any], key_bits: int) -> list[str]:
    """What is hidden and by which rules, what more can be asked, and what left the parties."""
    hidden, receipt, noise = attributes["hidden"], attributes["receipt"], attributes["noise"]
    *kinds, last = attributes["hidden_by"]
    by = f"{', '.join(kinds)} or {last}" if kinds else last
    lost = (
        f"{hidden:,} of {attributes['cells']:,} cells hidden (·), by the rules for {by}. "
        if hidden
        else ""
    )
    protection = {"clear": "IN THE CLEAR", "paillier": f"under paillier, {key_bits} bits"}
    return [
        f"\n{lost}{attributes['rules']}",
        *_left_out(attributes["left_out"]),
        *_counters(attributes["asked"], attributes["left"]),
        f"left the parties: {len(receipt):,} messages, "
        f"{sum(line['values'] for line in receipt):,} values, "
        f"{sum(line['bytes'] for line in receipt):,} bytes, {protection[attributes['hiding']]}"
        + (f", noise of epsilon {noise['epsilon']:g} by each party" if noise else "")
        + ", beside sealed letters between the two sides" * attributes.get("sides", False)
        + f", no record; {attributes['seconds']:.1f} s",
    ]


def _left_out(rows: int | None) -> list[str]:
    """What an answer does not speak of, in words."""
    if rows is None:
        return [
            "rows that are empty or outside the intervals are in no cell; how many is held back"
        ]
    return [f"{rows:,} rows are in no cell shown: hidden, empty or outside"] * (rows != 0)


def _counters(asked_cells: int | None, cells_left: int | None) -> list[str]:
    """What the parties have been asked for, and how much more they can answer, in words."""
    if asked_cells is None:
        return []
    cells = "1 cell" if asked_cells == 1 else f"{asked_cells:,} cells"
    return [
        f"you have asked each party for {cells}; it can answer about {cells_left:,} more, at most"
    ]


def tell_scores(
    run: Path,
    folder: Path,
    persons: tuple[str, ...],
    consents: tuple[Path, ...],
    purpose: str | None,
    terms_file: Path | None,
) -> None:
    """Scores of single persons across two sides, or why not, a line for each. Exit code 1 if none was told."""
    from contextlib import ExitStack
    from datetime import UTC, datetime
    from functools import partial

    from federated.cli.desk import identity_of
    from federated.queries.person.terms import ScoreTerms
    from federated.queries.person.trial import ScoringTrial, read_consent
    from lab.errors import PolicyError

    terms, today = ScoreTerms.read(terms_file), datetime.now(UTC).date()
    purpose = purpose or next(iter(terms.purposes))
    table, told = plain_table("person", "consent", "score"), 0
    with ExitStack() as stack:
        trial = ScoringTrial(run, folder, terms, partial(identity_of, folder), stack)
        signed = [trial.consent(person, purpose, today) for person in persons]
        for file in (*signed, *consents):
            consent = read_consent(file)
            try:
                answer = trial.ask(consent, today).answer
                told += 1
            except PolicyError as error:
                answer = f"refused: {error}"
            table.add_row(consent.person, str(file), answer)
    console = screen()
    console.print(table)
    how = "EXACT, which tells the other side's part" if terms.exact else "a band, no part of it"
    console.print(
        f"\nby models/federated.json, the columns of both sides; told: {how}", style="dim"
    )
    console.print(f"receipts: {folder}/receipts; logs: lab audit verify {folder}", style="dim")
    if not told:
        raise SystemExit(1)
