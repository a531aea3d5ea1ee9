"""How the coordinator has totals hidden and opened among real parties, who know keys and roster from
the charter: by a supervisor far away, by all holders of a split key, or by masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from federated.deployment.charter import Charter
from federated.deployment.coordinator import exchange
from federated.deployment.coordinator.sides import Letters, RemoteJoined
from federated.deployment.node.roles import split_of
from federated.deployment.node.supervisor import SHARE_FILE, with_form
from federated.hiding.masks import Masks
from federated.hiding.paillier import KeyHolders, Paillier
from federated.hiding.protocol import Clear, Protection, Talk, named_reply
from federated.joined.sums.factors import Owner
from federated.message_kinds import MessageKind
from federated.messages import Form, Request, message_of
from federated.study.experiment import Experiment
from federated.study.sides import known_of
from lab.errors import ConfigurationError, PeerError
from lab.privacy.disclosure import Rules
from lab.sums import Sums
from secure_agg.identity import Roster
from secure_agg.keys import PublicKey
from secure_agg.transcript import Transcript


class RemoteAuthority:
    """The supervisor, as the coordinator reaches it: it is shown transcripts and gives the next step."""

    everybody = False

    def __init__(self, public: PublicKey, name: str) -> None:
        self.public, self._name = public, name
        self.answer = RecordDict()  # to the last opening
        self.proof = RecordDict()

    def enrol(self, roster: Roster) -> dict[str, dict[str, bytes]]:
        return {}

    def first(self, talk: Talk, levels: RecordDict) -> RecordDict:
        """The step that the plan is at, signed. levels: the names that were agreed on."""
        return talk.ask(MessageKind.NEXT, {self._name: levels})[self._name]

    def open(self, talk: Talk, transcript: Transcript, request: Request, form: Form) -> Sums:
        """What may be shown of the total; of a model's nothing, but the step that follows.

        Raises what the supervisor refuses with.
        """
        content = message_of(transcript=transcript.to_bytes(), form=with_form(form))
        content.update(request.to_record())
        self.answer = talk.ask(MessageKind.OPEN, {self._name: content})[self._name]
        return named_reply(self._name, self.answer).sums

    @property
    def opened(self) -> dict[str, Any]:
        """What the supervisor says it opened and kept: arrays, values, bytes, and that it did.

        Raises :class:`PeerError` where it does not say.
        """
        volume = self.answer.config_records.get("opened", {})
        counts = {name: volume.get(name) for name in ("arrays", "values", "bytes")}
        if any(type(count) is not int or count < 0 for count in counts.values()):
            raise PeerError(f"{self._name}: does not say how much it opened", self._name)
        return {**counts, "opened_at": self._name}


class EnrolledPaillier(Paillier):
    """Paillier among parties that know roster and key from the charter and are told neither."""

    def enrol(self, talk: Talk, roster: Roster) -> None:
        self._roster = roster


class EnrolledMasks(Masks):
    """Masks among parties that know the roster from the charter."""

    def enrol(self, talk: Talk, roster: Roster) -> None:
        self._roster = roster


def rules_of(experiment: Experiment) -> Rules:
    """The rules of disclosure that the coordinator asks under."""
    file = experiment.protection.disclosure
    return Rules.read(None if file is None else Path(file))


def protection_of(
    experiment: Experiment, charter: Charter, folder: Path, owner: Owner
) -> Protection:
    """The coordinator's side of the protection that experiment and charter agree on.

    owner: who holds a column, where sides are joined.
    """
    settings, key = experiment.protection, charter.key
    if settings.sums == "masks":
        return EnrolledMasks()
    if settings.sums == "clear":
        return Clear(rules_of(experiment))
    if key is None:
        raise ConfigurationError("the charter has no key; make one with: lab keys deal")
    if key.public.bits < settings.key_bits:
        raise ConfigurationError(
            f"protection.key_bits: must be at most the bits of the charter's key, {key.public.bits}"
        )
    if key.opens == "authority":
        authority, pairs = RemoteAuthority(key.public, key.by[0]), charter.pairs
        if not experiment.joined or pairs is None:
            return EnrolledPaillier(authority)
        inner, known = EnrolledPaillier(authority, of_shares=True), known_of(experiment)
        room = Letters(exchange.Settings.read(folder).limits, settings.key_bits)
        return RemoteJoined(inner, pairs, owner, key.by[0], room, known=known)
    if experiment.joined:
        raise ConfigurationError(
            "joined: sides need a key authority; make its key with: lab keys deal"
        )
    return EnrolledPaillier(Holders(charter.roster, folder / SHARE_FILE, key.split))


class Holders:
    """All insurers together open totals; the dealer's public part says how their parts combine."""

    everybody = True

    def __init__(self, roster: Roster, path: Path, digest: str) -> None:
        self._holders = KeyHolders(split_of(path, digest), roster)
        self.public = self._holders.public

    @property
    def proof(self) -> RecordDict:
        return self._holders.proof

    def enrol(self, roster: Roster) -> dict[str, dict[str, bytes]]:
        return {}

    def open(self, talk: Talk, transcript: Transcript, request: Request, form: Form) -> Sums:
        return self._holders.open(talk, transcript, request, form)
