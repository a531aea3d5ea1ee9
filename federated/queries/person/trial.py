"""Scores of single persons by a run of joined sides, with both sides and a desk for consents in this process.

What each side keeps stands in a folder of its own: its identity, its log; consents and receipts beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from federated.joined.side import OTHER
from federated.joined.sums.factors import Role
from federated.link.consent import ConsentToken
from federated.link.party_log import LOG, party_log
from federated.queries.pair import check_one_insurer
from federated.queries.person import asker
from federated.queries.person.asked import AskedSide, BroughtQuestion, history_of
from federated.queries.person.asker import ScoreQuestion
from federated.queries.person.holdings import check_terms, holding_of, scored_model
from federated.queries.person.sides import ScoredSide, ScoreReceipt
from federated.queries.person.terms import ScoreTerms, consent_to_score
from federated.study.experiment import Experiment
from federated.study.joined import JoinedTables, joined_tables
from federated.study.rows import declared_categories
from lab.audit.log_format import entries, read_lines
from lab.errors import ConfigurationError
from lab.files import read_json, write_whole
from lab.models import files
from secure_agg.identity import Identity

DESK, CONSENTS, RECEIPTS = "consent desk", "consents", "receipts"


@dataclass(frozen=True)
class ToldBand:
    """What the asker learned, and both receipts."""

    answer: str
    receipts: tuple[ScoreReceipt, ScoreReceipt]


class ScoringTrial:
    """Both sides of a run, and a desk where persons sign.

    folder: kept from one question to the next; identity_of: a party's, by its name; stack: closes logs."""

    def __init__(
        self,
        run: Path,
        folder: Path,
        terms: ScoreTerms,
        identity_of: Callable[[str], Identity],
        stack: ExitStack,
    ) -> None:
        experiment, self.model = _experiment(run), scored_model(run)
        self.folder, self._identity_of = folder, identity_of
        self.desk = identity_of(DESK)
        signers = {DESK: self.desk.card.verifying.hex()} | terms.signers
        self.terms = terms.model_copy(update={"signers": signers})
        check_terms(self.terms, self.model)
        self.digest = files.digest((run / "models" / "federated.json").read_text())
        tables = joined_tables(experiment, declared_categories(experiment))
        names: dict[Role, str] = {"insurer": tables.names[0], "fund": tables.fund_name}
        self.sides = {
            role: self._side(role, name, tables, experiment, stack) for role, name in names.items()
        }

    def _side(
        self,
        role: Role,
        name: str,
        tables: JoinedTables,
        experiment: Experiment,
        stack: ExitStack,
    ) -> ScoredSide:
        identity = self._identity_of(name)
        frame = tables.insurers if role == "insurer" else tables.fund
        holding = holding_of(self.model, frame, tables.owner(), experiment.data.cap, role)
        log = stack.enter_context(party_log(identity, self.folder / name, of=""))
        law = self.model.task.law
        return ScoredSide(identity, role, self.terms, self.digest, law, holding, log)

    def consent(self, person: str, purpose: str, today: date) -> Path:
        """The file of a consent that the person signs at the desk today. Raises ConfigurationError."""
        if purpose not in self.terms.purposes:
            owners = ", ".join(f"'{p}' ({side})" for p, side in self.terms.purposes.items())
            raise ConfigurationError(f"--purpose '{purpose}': the terms have {owners}")
        role = self.terms.purposes[purpose]
        token = consent_to_score(
            self.desk,
            self.terms,
            asker=self.sides[role].name,
            asked=self.sides[OTHER[role]].name,
            person=person.strip(),
            purpose=purpose,
            model=self.digest,
            today=today,
        )
        return self._write(CONSENTS, token.digest[:12], token)

    def ask(self, consent: ConsentToken, today: date) -> ToldBand:
        """One question through both sides. Raises PolicyError by the rules of the side that is asked."""
        role: Role = "fund" if consent.insurer == self.sides["fund"].name else "insurer"
        own, other = self.sides[role], self.sides[OTHER[role]]
        log = self.folder / other.name / LOG
        asked = AskedSide(other, {}, history_of(entries(read_lines(log))))

        def brought(question: ScoreQuestion) -> tuple[bytes, ScoreReceipt]:
            step, sent = question.step, question.sent
            return asked.answer(BroughtQuestion(consent, own.name, role, step, sent), today)

        question = asker.question(own, consent)
        reply, theirs = brought(question)
        if question.step == "leaves":
            question = asker.go_on(own, question, reply)
            reply, theirs = brought(question)
        answer, ours = asker.read(own, question, reply, today)
        for receipt in (ours, theirs):
            self._write(RECEIPTS, f"{consent.digest[:12]}-{receipt.by}", receipt)
        return ToldBand(answer, (ours, theirs))

    def _write(self, place: str, name: str, record: ConsentToken | ScoreReceipt) -> Path:
        file = self.folder / place / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        write_whole(file, record.model_dump_json(indent=1).encode() + b"\n", 0o600)
        return file


def read_consent(file: Path) -> ConsentToken:
    """Raises ConfigurationError, without what stands in the file."""
    try:
        return ConsentToken.model_validate(read_json(file))
    except ValidationError:
        raise ConfigurationError(f"{file}: is no consent, or a damaged one") from None


def _experiment(run: Path) -> Experiment:
    """The experiment of a run over one insurer and the fund."""
    try:
        content: Any = read_json(run / "result.json")
        experiment = Experiment.model_validate(content["experiment"])
    except (ValidationError, KeyError, TypeError):
        raise ConfigurationError(f"{run}: is not the folder of a run") from None
    if not experiment.joined:
        raise ConfigurationError(
            f"{run}: one party has all its columns; score its rows with: lab score {run} TABLE"
        )
    check_one_insurer(experiment)
    return experiment
