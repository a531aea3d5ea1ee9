"""Scores of one person among real sides over TLS: by the models that runs brought home, as node.toml lets them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from federated.bench.loopback import LAB
from federated.cli.main import lab
from federated.deployment import charter as charters
from federated.deployment.charter import Charter
from federated.deployment.link.signer import make_signer, sign_score
from federated.queries.person.terms import ScoreTerms
from lab.audit.log_format import entries, read_lines
from lab.errors import LabError
from lab.files import canonical, write_whole
from lab.models import files
from tests.rigs.sides import Sides, persons
from tests.rigs.trial import started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BANDS, KINDS = (0.5, 1.0, 2.0), ("glm", "trees")
TODAY = datetime.now(UTC).date()
INSURER, FUND, DESK = "insurer 1", "fund", "clinic"
OFFER, INVITE = "offer a renewal", "invite to a care programme"


class ScoredSides(Sides):
    """Sides that tell each other scores: an insurer's of four in 30 days, the fund's of many."""

    def __init__(self, root: Path, key: Any) -> None:
        super().__init__(root, key, learns="both")
        for name in self.insurers:
            self.answer(name, a_month=4 if name == FUND else 50)
        for name in ("charter.json", "charter.signatures.json"):
            shutil.copy(self.root / FUND / name, self.root / DESK / name)
        self.serving_links: dict[str, subprocess.Popen[str]] = {}

    def _charter(self, key: Any, analyses: Any, contracts: Any) -> Charter:
        desk = make_signer(self.root / DESK, DESK).card.verifying.hex()
        purposes = {OFFER: "insurer", INVITE: "fund"}
        terms = ScoreTerms.model_validate(
            {
                "purposes": purposes,
                "bands": BANDS,
                "kinds": KINDS,
                "signers": {DESK: desk},
                "scores_of_a_person": 2,
            }
        )
        return charters.with_terms(super()._charter(key, analyses, contracts), scores=terms)

    def answer(self, name: str, **values: Any) -> None:
        """Say in a side's settings what it tells others; it must be started again."""
        path = self.root / name / "node.toml"
        before = path.read_text().split("\n[scores]")[0]
        values |= {"kinds": KINDS} if values else {}
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        path.write_text("\n".join([before, "[scores]" if values else "", *lines, ""]))

    def link(self, name: str) -> None:
        """Start a side's process for scores."""
        process = subprocess.Popen(
            [*LAB, "link", "serve", str(self.root / name)], stdout=subprocess.PIPE, text=True
        )
        self.serving_links[name] = process
        assert process.stdout is not None
        assert any(" answers: " in line for line in iter(process.stdout.readline, ""))

    def unlink(self, name: str, sign: int = signal.SIGKILL) -> None:
        process = self.serving_links.pop(name)
        process.send_signal(sign)
        process.communicate(timeout=60)

    def again(self, name: str, **values: Any) -> None:
        """Start a side's process again, after it was killed, with other settings."""
        self.unlink(name)
        if values:
            self.answer(name, **values)
        self.link(name)

    def model(self, run: str, name: str = INSURER) -> Path:
        return self.root / name / "results" / run

    def consent(self, run: str, person: str, asker: str = INSURER, purpose: str = "") -> Path:
        """A file of the desk at which persons sign."""
        word = {"asker": asker, "asked": "", "person": person, "today": TODAY}
        model = files.digest(files.model_file(self.model(run)).read_text())
        what = purpose or (OFFER if asker != FUND else INVITE)
        signed = sign_score(self.root / DESK, model=model, purpose=what, **word)
        file = self.root / f"{signed.digest[:16]}.json"
        write_whole(file, canonical(signed.model_dump(mode="json")))
        return file

    def ask(self, run: str, file: Path, name: str = INSURER) -> str:
        """What the command of a side says of the score."""
        arguments = ["score", self.model(run, name), "--node", self.root / name, "--consent", file]
        return self.say(*arguments)

    def say(self, *command: Any) -> str:
        done = CliRunner().invoke(lab, [*map(str, command)], env={"COLUMNS": "400"})
        if isinstance(done.exception, LabError):
            return str(done.exception)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.output

    def told(self, name: str, kind: str) -> list[Any]:
        path = self.root / name / "link" / "log.jsonl"
        return [line.told for line in entries(read_lines(path)) if line.kind == kind]

    def stop(self) -> None:
        for name in list(self.serving_links):
            self.unlink(name, signal.SIGTERM)
        super().stop()


@pytest.fixture(scope="module")
def sides(tmp_path_factory: Any, authority_key: Any) -> Iterator[ScoredSides]:
    with started(ScoredSides(tmp_path_factory.mktemp("scored"), authority_key)) as made:
        for name in (INSURER, FUND):
            made.link(name)
        yield made


@pytest.fixture(scope="module")
def runs(sides: ScoredSides) -> dict[str, str]:
    """A finished run of each kind of model."""
    studies = {"glm": sides.study(name="glm"), "trees": sides.trees("trees")}
    return {kind: str(sides.run(study).run) for kind, study in studies.items()}


def expected(run: Path, person: str) -> set[str]:
    """The bands that a person's score may be told as: of the pooled score, or of one half a step away."""
    frame, model = persons(), files.read(run)
    row = frame[frame.person == person].astype({"region": "category", "chronic": "category"})
    (score,) = model.predict(row)
    terms = ScoreTerms(purposes={OFFER: "insurer"}, bands=BANDS)
    places = np.searchsorted(BANDS, score * np.exp([-1 / 30, 1 / 30]))
    return {terms.band(place) for place in places}


@pytest.mark.parametrize("kind", ["glm", "trees"])
def test_a_side_is_told_the_band_of_the_pooled_score(
    sides: ScoredSides, runs: dict[str, str], kind: str
) -> None:
    run = runs[kind]
    person = persons()["person"].iloc[3 if kind == "glm" else 4]
    for asker in (INSURER, FUND):
        text = sides.ask(run, sides.consent(run, person, asker), asker)
        (line,) = (line for line in text.splitlines() if person in line)
        assert any(band in line for band in expected(sides.model(run), person)), line
    receipts = sides.root / INSURER / "link" / "scores" / "receipts"
    (newest,) = sorted(receipts.iterdir(), key=lambda path: path.stat().st_mtime)[-1:]
    checked = sides.say("link", "receipt", newest, "--charter", sides.root / FUND / "charter.json")
    assert "signed by both; fund saw neither score nor band" in checked
    assert person not in (sides.root / FUND / "link" / "log.jsonl").read_text()


def test_a_consent_is_good_for_one_score_whatever_is_killed_when(
    sides: ScoredSides, runs: dict[str, str]
) -> None:
    run = runs["trees"]
    file = sides.consent(run, persons()["person"].iloc[7])
    sides.serving_links[FUND].send_signal(signal.SIGSTOP)
    assert "fund: does not answer" in sides.ask(run, file)
    sides.unlink(FUND)
    sides.again(INSURER)
    sides.link(FUND)
    before = len(sides.told(FUND, "request"))
    answer = sides.ask(run, file)
    assert any(band in answer for band in expected(sides.model(run), persons()["person"].iloc[7]))
    assert f"(told on {TODAY})" in sides.ask(run, file)
    assert len(sides.told(FUND, "request")) == before + 2  # about leaves, then about the band
    sides.again(FUND)
    for receipt in (sides.root / INSURER / "link" / "scores" / "receipts").iterdir():
        receipt.unlink()
    assert "the consent was used before" in sides.ask(run, file)


def test_a_side_answers_as_many_a_month_as_its_settings_say(
    sides: ScoredSides, runs: dict[str, str]
) -> None:
    run = runs["glm"]
    sides.again(
        FUND, a_month=3 + len({told["number"] for told in _answered(sides)}), approval="always"
    )
    waits = sides.consent(run, persons()["person"].iloc[20])
    assert "[approval] question" in sides.ask(run, waits)
    listed = sides.say("node", "requests", sides.root / FUND)
    assert "score of one person" in listed and "asked by   insurer 1, to offer a renewal" in listed
    digest = listed.split()[0]
    assert "approved" in sides.say("node", "approve", sides.root / FUND, digest, "--by", "Li")
    assert "refused" not in sides.ask(run, waits)
    assert sides.told(FUND, "approval")[-1]["by"] == "Li"

    most = 2 + len({told["number"] for told in _answered(sides)})
    sides.again(FUND, a_month=most)
    people = persons()["person"].iloc[30:34]
    told = [sides.ask(run, sides.consent(run, person)) for person in people]
    assert ["refused" in text for text in told] == [False, False, True, True]
    assert f"insurer 1 was told {most} scores in 30 days, as many as it may" in told[-1]
    sides.again(FUND)  # it counts from its log
    assert "as many as it may" in sides.ask(run, sides.consent(run, people.iloc[0]))
    checked = sides.say("node", "check", sides.root / FUND)
    assert f"of one person: {most} an asker in 30 days, 2 of a person in 365 days" in checked
    rates = sides.say("link", "rates", sides.root / FUND / "link" / "log.jsonl")
    assert "score" in rates and INSURER in rates
    sides.again(FUND, a_month=100)


def _answered(sides: ScoredSides) -> list[Any]:
    return [told for told in sides.told(FUND, "request") if "number" in told]


def test_what_is_not_allowed_is_refused_in_one_line(
    sides: ScoredSides, runs: dict[str, str]
) -> None:
    run = runs["glm"]
    person = persons()["person"].iloc[50]
    altered = sides.consent(run, person)
    content = json.loads(altered.read_text())
    content["person"] = persons()["person"].iloc[51]
    altered.write_text(json.dumps(content))
    unknown = sides.consent(run, "P-9999")
    refusals = {
        "[consent] the consent was altered": sides.ask(run, altered),
        "insurer 1 has no complete row of this person": sides.ask(run, unknown),
        "is a purpose of the fund": _signed(sides, run, person, INVITE),
    }
    for words, text in refusals.items():
        assert words in text, text
    path = sides.root / "tables" / FUND / "table.parquet"
    table = pd.read_parquet(path)
    table[table.card != person].to_parquet(path, index=False)  # read anew, without a restart
    assert "fund has no complete row" in sides.ask(run, sides.consent(run, person))
    table.to_parquet(path, index=False)
    home = sides.root / FUND / "results" / run
    home.rename(sides.root / "kept")
    sides.again(FUND)
    assert "fund has no model" in sides.ask(run, sides.consent(run, person))
    (sides.root / "kept").rename(home)
    sides.unlink(FUND)
    sides.answer(FUND)
    sides.link(FUND)
    assert "fund: does not answer" in sides.ask(run, sides.consent(run, person))


def _signed(sides: ScoredSides, run: str, person: str, purpose: str) -> str:
    with pytest.raises(LabError) as error:
        sides.consent(run, person, INSURER, purpose)
    return str(error.value)
