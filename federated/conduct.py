"""A study with real parties from its file to its result: what they are told, asked, and give.

The arms *alone* and *pooled* do not exist here: nobody has the rows.
"""

from __future__ import annotations

import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from federated import arms, exchange, fleet
from federated.answers import OPEN, split_of
from federated.charter import Charter
from federated.deployed import RealFederation
from federated.encrypted import Paillier
from federated.enrolment import INSURERS
from federated.exchange_grid import ExchangeGrid
from federated.experiment import Experiment
from federated.federation import single_threaded_blas
from federated.insurer import Study as Announced
from federated.journal import Journal
from federated.ledger import LOG_NAME, open_log
from federated.masked import Masks
from federated.messages import Form, Request, letter
from federated.parties import Features, columns_needed
from federated.party import charter_of, identity_of
from federated.protection import Protection, Talk, named_reply
from federated.supervisor import SHARE_FILE, with_form
from lab.contracts import Contract
from lab.errors import ConfigurationError
from lab.log import Log
from lab.partition import Split
from lab.sources import built_in
from lab.sums import Sums
from secure_agg.identity import Identity, Roster
from secure_agg.keys import PublicKey
from secure_agg.transcript import FEWEST, Transcript


class ByLetter:
    """The supervisor, as the coordinator reaches it: it is shown transcripts and gives totals."""

    def __init__(self, public: PublicKey, name: str) -> None:
        self.public, self._name = public, name

    def enrol(self, roster: Roster) -> dict[str, dict[str, bytes]]:
        return {}

    def open(self, talk: Talk, transcript: Transcript, request: Request, form: Form) -> Sums:
        """The total. Raises what the supervisor refuses with."""
        asked = letter(transcript=transcript.to_bytes(), form=with_form(form))
        asked.update(request.to_record())
        reply = named_reply(self._name, talk.ask(OPEN, {self._name: asked})[self._name])
        limits = {name: limit for name, (_, limit) in reply.form.items()}
        return Sums(reply.clear or {}, limits, reply.rows)


class Enrolled(Paillier):
    """Paillier among parties that know roster and key from the charter and are told neither."""

    def enrol(self, talk: Talk, roster: Roster) -> None:
        self._roster = roster


class EnrolledMasks(Masks):
    """Masks among parties that know the roster from the charter."""

    def enrol(self, talk: Talk, roster: Roster) -> None:
        self._roster = roster


class Apart:
    """The market of a study whose rows are at the parties: what is public of it."""

    origin, digest, in_sample = "each party's own table", "", False

    def __init__(self, experiment: Experiment, contract: Contract, features: Features) -> None:
        self.experiment, self.contract, self.features = experiment, contract, features
        self.in_sample = experiment.data.test == 0 and experiment.data.test_column is None
        self.sizes: dict[str, dict[str, int | None]] = {}

    @property
    def inputs(self) -> list[str]:
        used = {f.column for listed in self.features.values() for f in listed}
        return [name for name in columns_needed(self.experiment, self.features) if name in used]

    @property
    def parties(self) -> list[Any]:
        """Rows are not here."""
        return []


def announced(experiment: Experiment) -> Announced:
    """What parties are told of an experiment: no path, no arm but the federated."""
    data = experiment.data
    if data.contract is not None:
        contract = Contract.read(Path(data.contract))
    elif data.source is not None:
        contract = built_in(data.source)
    else:
        raise ConfigurationError("data.contract is needed: the rows are at the parties")
    if data.test_rows is not None:
        raise ConfigurationError("data.test_rows: rows are at the parties; use data.test_column")
    if experiment.profile:
        raise ConfigurationError("profile: profiles of others are made in simulations alone so far")
    nowhere = dict.fromkeys(("source", "contract", "table", "query", "market"))
    public = data.model_copy(update={**nowhere, "path": "at the parties"})
    arm = experiment.arms.model_copy(update={"run": ("federated",)})
    told = experiment.model_copy(
        update={"data": public, "arms": arm, "query": (), "parties": Split(count=FEWEST)}
    )
    return Announced(told, contract)


def _protected(experiment: Experiment, charter: Charter) -> dict[str, Any]:
    """The protection as it is: who opens, and by a key of how many bits, the charter says."""
    key = charter.key if experiment.protection.sums == "paillier" else None
    told = {"key": key.opens, "key_bits": key.public.bits} if key else {}
    return {"protection": experiment.protection.model_copy(update=told)}


def protection_of(experiment: Experiment, charter: Charter, folder: Path) -> Protection:
    """The coordinator's side of the protection that experiment and charter agree on."""
    settings, key = experiment.protection, charter.key
    if settings.sums == "masks":
        return EnrolledMasks()
    if settings.sums == "clear":
        from federated.protection import Clear

        return Clear()
    if key is None:
        raise ConfigurationError("the charter has no key: lab keys deal makes one")
    if key.public.bits < settings.key_bits:
        raise ConfigurationError(
            f"protection.key_bits: the charter's key has {key.public.bits} bits"
        )
    if key.opens == "authority":
        return Enrolled(ByLetter(key.public, key.by[0]))
    return Enrolled(Holders(charter.roster, folder / SHARE_FILE, key.split))


class Holders:
    """All insurers together open totals; the dealer's public part says how their parts combine."""

    def __init__(self, roster: Roster, path: Path, digest: str) -> None:
        from federated.encrypted import KeyHolders

        self._holders = KeyHolders.of(split_of(path, digest), roster)
        self.public = self._holders.public

    def enrol(self, roster: Roster) -> dict[str, dict[str, bytes]]:
        return {}

    def open(self, talk: Talk, transcript: Transcript, request: Request, form: Form) -> Sums:
        return self._holders.open(talk, transcript, request, form)


def perform_on(
    experiment: Experiment, folder: Path, *, fresh: bool = False, progress: Any = None
) -> arms.Study:
    """Run the federated arm of an experiment with the parties of an exchange.

    folder: the exchange's, which is served. Raises :class:`~lab.errors.LabError`.
    """
    identity = identity_of(folder)
    charter = charter_of(folder, identity.card.name)
    secret, told = exchange.secret_of(folder), announced(experiment)
    if experiment.model.kind not in charter.analyses:
        raise ConfigurationError(
            f"model.kind: the charter allows {', '.join(charter.analyses)}, not "
            f"'{experiment.model.kind}'"
        )
    protection = protection_of(experiment, charter, folder)
    journal = Journal.take_up(folder / exchange.RUNS, told.digest, charter.digest, fresh)
    tell = progress or (lambda arm, what, step, of: None)
    if experiment.model.kind == "network":
        from lab.network import single_threaded

        single_threaded()
    try:
        with (
            open_log(folder / LOG_NAME, identity, charter=charter.digest) as log,
            exchange.short(folder) as reached,
            closing(ExchangeGrid(f"{reached}/{exchange.INNER}", secret, fleet.bundle())) as grid,
            single_threaded_blas(),
        ):
            return _conducted(
                experiment, told, protection, grid, folder, charter, identity, journal, log,
                partial(tell, "federated"),
            )  # fmt: skip
    finally:
        journal.close()


def _conducted(
    experiment: Experiment,
    told: Announced,
    protection: Protection,
    grid: ExchangeGrid,
    folder: Path,
    charter: Charter,
    identity: Identity,
    journal: Journal,
    log: Log,
    watch: Any,
) -> arms.Study:
    started = time.perf_counter()
    market = Apart(experiment, told.contract, told.features)
    name = told.experiment.name
    log.append("request", run=journal.run, statistic=name, by=identity.card.name)
    federation = RealFederation(
        grid, protection, folder, charter, identity, journal, log, told,
        lambda what, step: watch(what, step, None),
    )  # fmt: skip
    only = told.experiment.arms.model_copy(update={"replicates": experiment.arms.replicates})
    kept = {"arms": only, "query": experiment.query, **_protected(experiment, charter)}
    plain = told.experiment.model_copy(update=kept)
    study = arms.Study(plain, market, {}, {}, {})  # type: ignore[arg-type]
    result = study.arms["federated"] = arms.ArmResult("federated")
    result.models["all"] = arms.fit_models(study, federation, watch)
    models = {part: fitted.json for part, fitted in result.models["all"].items()}
    from federated.scoring import Scorer

    scorer = Scorer.apart(plain, market, federation)
    result.evaluations = scorer.shared(models, federation)
    study.receipts, study.silent = federation.receipts(), federation.silent
    study.outlook = federation.outlook(study.receipts)
    study.run = journal.run
    for party in study.outlook:
        if party.role in INSURERS:
            market.sizes[party.name] = {"train": party.rows, "test": None}
        if party.state != "took part":
            result.notes[party.name] = party.state.removeprefix(f"{party.name}: ")
    federation.take_checkpoints()
    result.seconds = time.perf_counter() - started
    journal.end()
    return study
