"""What asking the fund finds of planted non-disclosure in a simulated market, and whom it asks about.

An insurer asks where a claim could be for what was concealed: the product asks for health at
inception, the claim is for a chapter of one of the charter's groups that was not declared, and it
comes soon after inception. Questions about the same person, group and policy are one. The person
signs at a desk when it claims.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from federated.link.charter import ConditionTerms
from federated.link.condition import FundSide, InsurerSide
from federated.link.consent import Answer, Receipt, consented, consented_unseen
from federated.link.lookup import Condition, HiddenList, hidden_list
from federated.link.party_log import party_log
from federated.link.planted import DetectionScore, detection, of_kind
from lab.errors import ConfigurationError, PolicyError
from lab.market.assumptions import CHAPTER_OF
from lab.tables.market_folder import payers
from secure_agg.identity import Identity
from secure_agg.ristretto import derived_key

KIND = "non_disclosure"
DAY_0 = date(2021, 1, 1)
TODAY = date(2024, 1, 1)
#: An insurer asks about claims of so many days after inception.
EARLY_DAYS = 730
DESK = "consent desk"


@dataclass(frozen=True)
class Disclosures:
    """What came of asking.

    questions: a row for each: `payer`, `person`, `group`, `before`, `answer` ("refused: …" where
        the fund's rules say so)
    detections: at each insurer and at all
    persons, honest: whom was asked about, and of these without a fraud of the kind
    """

    questions: pd.DataFrame
    detections: list[DetectionScore]
    persons: int
    honest: int


class DisclosureTrial:
    """All sides in one process, with logs in a folder: a desk where persons sign, fund, insurers."""

    def __init__(self, market: Path, terms: ConditionTerms, logs: Path, stack: ExitStack) -> None:
        names = (DESK, *payers(market))
        self.identities = {name: Identity.generate(name) for name in names}
        key = self.identities[DESK].card.verifying.hex()
        self.terms = terms.model_copy(update={"signers": {DESK: key}})
        self.secret = secrets.token_bytes(32)
        records = market_records(market)
        scalar = derived_key(secrets.token_bytes(32), b"condition")
        table = self._table(records, scalar)
        log = {
            name: stack.enter_context(party_log(self.identities[name], logs / name))
            for name in payers(market)
        }
        fund, secret = self.terms.fund, secrets.token_bytes(32)
        self.fund = FundSide(self.identities[fund], self.terms, records, scalar, secret, log[fund])
        self.insurers = {
            name: InsurerSide(self.identities[name], self.terms, log[name], table)
            for name in payers(market)
            if name != fund
        }

    def _table(self, records: list[Condition], scalar: bytes) -> HiddenList | None:
        if self.terms.look_up == "open":
            return None
        terms = self.terms
        return hidden_list(records, terms.refer_days, terms.cap, scalar, secrets.token_bytes)

    def ask(
        self, insurer: str, person: str, group: str, before: date, today: date, purpose: str = ""
    ) -> tuple[Answer, tuple[Receipt, Receipt]]:
        """One question through all sides: the answer, and the fund's and the insurer's receipts.

        Raises PolicyError by the fund's rules.
        """
        wanted = {
            "insurer": insurer,
            "fund": self.terms.fund,
            "purpose": purpose or self.terms.purposes[0],
            "group": group,
            "before": before,
            "expires": today + timedelta(days=min(7, self.terms.token_days)),
        }
        desk, side = self.identities[DESK], self.insurers[insurer]
        blinding, question = secrets.token_bytes(32), b""
        if self.terms.look_up == "open":
            consent = consented(desk, DESK, {**wanted, "person": person})
        else:
            signed = consented_unseen(desk, DESK, wanted, person, self.secret, blinding)
            consent, question = signed
        side.asks(consent)
        reply, theirs = self.fund.answer(consent, insurer, today, question)
        answer, ours = side.read(consent, reply, today, person, blinding)
        return answer, (theirs, ours)


def market_records(market: Path) -> list[Condition]:
    """The public insurer's record of conditions. Raises ConfigurationError where there is none."""
    file = market / "public" / "conditions.parquet"
    if not file.is_file():
        raise ConfigurationError(f"{file}: missing; {market} is no market of lab market make")
    frame = pd.read_parquet(file)
    persons, groups = frame["person"].astype("str"), frame["condition"].astype("str")
    days = [DAY_0 + timedelta(days=int(day)) for day in frame["first_day"]]
    return [Condition(*line) for line in zip(persons, groups, days, strict=True)]


def claims_to_ask_about(market: Path, insurer: str, groups: tuple[str, ...]) -> pd.DataFrame:
    """Claims and the groups to ask about: `claim`, `person`, `paid`, `group`, `before`, `day`."""
    claims = pd.read_parquet(market / insurer / "claims.parquet")
    policies = pd.read_parquet(market / insurer / "policies.parquet")
    terms = policies.drop(columns=["person", "product", "deductible", "sum_insured"])
    rows = claims.merge(terms, on="policy")
    rows = rows[rows["declared_conditions"].notna() & (rows["days_since_inception"] <= EARLY_DAYS)]
    parts = []
    for group in groups:
        chapter = CHAPTER_OF.get(group)  # type: ignore[call-overload]
        at = (rows["icd_chapter"].astype("str") == chapter) & (rows[f"declared_{group}"] == 0)
        part = rows.loc[at, ["claim", "person", "policy", "paid", "inception_day", "admission_day"]]
        parts.append(part.assign(group=group))
    asked = pd.concat(parts, ignore_index=True)
    asked["before"] = [DAY_0 + timedelta(days=int(day)) for day in asked["inception_day"]]
    asked["day"] = [DAY_0 + timedelta(days=int(day)) for day in asked["admission_day"]]
    ordered: pd.DataFrame = asked.sort_values(["admission_day", "claim"], kind="stable")
    return ordered


def disclosures(market: Path, terms: ConditionTerms, logs: Path) -> Disclosures:
    """Every insurer of a market asks where it has reason to, on the day of the claim.

    logs: a folder for the logs of all sides
    """
    insurers, parts, lines = [p for p in payers(market) if p != terms.fund], [], []
    with ExitStack() as stack:
        trial = DisclosureTrial(market, terms, logs, stack)
        for name in insurers:
            wanted = claims_to_ask_about(market, name, terms.groups).assign(payer=name)
            wanted["answer"] = list(_answers(trial, name, wanted))
            parts.append(wanted)
            claims = pd.read_parquet(market / name / "claims.parquet", columns=["claim", "paid"])
            lines.append(claims.assign(payer=name))
    questions, claims = pd.concat(parts, ignore_index=True), pd.concat(lines, ignore_index=True)
    fraud = of_kind(market, claims["claim"], KIND)
    hits = questions.loc[questions["answer"] == "yes", "claim"]
    reports = claims["claim"].isin(hits).to_numpy()
    detections = [
        detection(name, claims["paid"], fraud, reports, claims["payer"].to_numpy() == name)
        for name in insurers
    ]
    detections.append(detection("all insurers", claims["paid"], fraud, reports))
    persons = questions.groupby("person")["claim"].agg(list)
    guilty = np.array([of_kind(market, pd.Series(ids), KIND).any() for ids in persons], dtype=bool)
    columns = ["payer", "person", "group", "before", "answer"]
    return Disclosures(questions[columns], detections, len(persons), int((~guilty).sum()))


def _answers(trial: DisclosureTrial, insurer: str, wanted: pd.DataFrame) -> Iterator[str]:
    """The answer to each row's question; rows of one person, group and policy share one."""
    answers: dict[tuple[str, str, int], str] = {}
    columns = (wanted[name].tolist() for name in ("person", "group", "policy", "before", "day"))
    for person, group, policy, before, day in zip(*columns, strict=True):
        key = str(person), str(group), int(policy)
        if key not in answers:
            try:
                answers[key], _ = trial.ask(insurer, key[0], key[1], before, day)
            except PolicyError as error:
                answers[key] = f"refused: {error.rule}"
        yield answers[key]
