"""`lab query`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from federated.cli.options import RUNS, WITHOUT, changed


@click.command()
@click.argument("question")
@click.option(
    "--on",
    "experiment",
    default="experiments/rand_hie.toml",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Whose data, parties and protection: an experiment file.",
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
    """
    from federated.study.experiment import Experiment

    read = Experiment.read(experiment, changed(changes))
    from federated.queries.desk import query as ask
    from federated.study.experiment import Query
    from federated.study.result import with_names
    from lab.privacy.noise import Noise
    from lab.records import parse

    noise = None
    if epsilon is not None:
        given = {"mechanism": "gaussian" if delta else "laplace", "epsilon": epsilon}
        given |= {"delta": delta, "rows_per_person": rows_per_person}
        noise = parse(Noise, given, where="noise")
    if exchange is None:
        answer = ask(read, question, noise=noise, runs=runs)
    else:
        from federated.deployment.coordinator.study import ask_questions

        asked = {"query": (Query(sql=question, noise=noise),)}
        ((_, answer),) = ask_questions(read.model_copy(update=asked), exchange, without=without)
    if form == "csv":
        click.echo(with_names(answer).to_csv(index=False), nl=False)
    elif form == "json":
        click.echo(_answer_json(answer))
    else:
        _print_answer(answer, read.protection.key_bits)


#: Rows of an answer that are printed; --csv has all of them.
ROWS_PRINTED = 60


def _answer_json(answer: Any) -> str:
    import json

    from federated.study.result import with_names
    from federated.study.run_folder import plain

    told = {"rows": with_names(answer).astype(object).to_dict("records"), **answer.attrs}
    return json.dumps(plain(told), ensure_ascii=False, allow_nan=False)


def _print_answer(answer: Any, key_bits: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from federated.study.result import with_names
    from lab.report.page import shown

    console, told = Console(), answer.attrs
    table = Table(box=None, pad_edge=False, header_style="dim")
    rows = with_names(answer)
    for name in rows.columns:
        table.add_column(str(name), justify="right" if rows[name].dtype.kind in "iuf" else "left")
    for row in rows.head(ROWS_PRINTED).astype(object).to_numpy():
        table.add_row(*map(shown, row))
    console.print(table)
    if len(answer) > ROWS_PRINTED:
        console.print(f"… {len(answer) - ROWS_PRINTED:,} more rows; --csv prints all", style="dim")
    for name in ("reserve", "medians"):
        if name in told:
            line = ", ".join(f"{k} {shown(v)}" for k, v in told[name].items())
            console.print(line, highlight=False)
    lost = f"{told['hidden']:,} of {told['cells']:,} cells hidden (·). " if told["hidden"] else ""
    console.print(f"\n{lost}{told['rules']}", style="dim", highlight=False, soft_wrap=True)
    receipt = told["receipt"]
    words = {"clear": "IN THE CLEAR", "paillier": f"under paillier, {key_bits} bits"}
    noise = told["noise"]
    console.print(
        f"left the parties: {len(receipt):,} messages, {sum(r['values'] for r in receipt):,} values, "
        f"{sum(r['bytes'] for r in receipt):,} bytes, {words[told['hiding']]}"
        + (f", noise of epsilon {noise['epsilon']:g} by each party" if noise else "")
        + f", no record; {told['seconds']:.1f} s",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
