"""The supervisor: it opens one total at a time, by the rules of the key authority and the charter.

Beyond the checks of `secure_agg.transcript.examine` it enforces the charter: a minimum of parties, a
party that left a run stays out of it, and no question is opened for sets of parties from which the
sum of a single party would follow. It remembers by its own log: a line is on disk before a total
leaves.

What that does not stop: two nearly identical questions, with and without a party, nearly show that
party's sum. Members who do not accept that set minimum_parties to the number of insurers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from federated.deployment.audit_logs import LOG_NAME, open_log
from federated.deployment.charter import Charter, with_key, write
from federated.deployment.folders import identity_of
from federated.hiding.paillier import KeyAuthority
from federated.hiding.protocol import fields_of
from federated.messages import Form, Reply, Request, form_from_json, form_to_json, read
from federated.party.release import RELEASED
from lab.audit import log_format as audit
from lab.audit.log_writer import Log
from lab.errors import ConfigurationError, PeerError, PolicyError
from lab.files import canonical, write_whole
from lab.privacy.disclosure import Rules
from lab.sums import Sums
from secure_agg import shares
from secure_agg.errors import KeyFileRefused
from secure_agg.identity import Roster
from secure_agg.keys import PrivateKey, generate, load_private, save_private
from secure_agg.transcript import Transcript

#: What all openings are about, to the rule of sets, that only a release answers.
RELEASE = "released"
KEY_FILE, SHARE_FILE = "paillier.key", "share.json"


class Openings:
    """What was opened so far, as the supervisor's own log has it."""

    def __init__(self, folder: Path) -> None:
        self.queries: set[str] = set()
        self._sets: dict[str, list[frozenset[str]]] = {}
        self._runs: dict[str, frozenset[str]] = {}
        path = folder / LOG_NAME
        for entry in audit.entries(audit.read_lines(path)) if path.exists() else ():
            if entry.kind == "release" and "question" in entry.told:
                parties = frozenset(entry.told["parties"])
                subject = subject_of(entry.told["statistic"], entry.told["question"])
                self.note(entry.run, entry.query, subject, parties)

    def note(self, run: str, query: str, subject: str, parties: frozenset[str]) -> None:
        self.queries.add(query)
        self._sets.setdefault(subject, []).append(parties)
        self._runs[run] = parties

    def check(self, run: str, subject: str, parties: frozenset[str], roster: Roster) -> None:
        """Raises :class:`PolicyError` where this opening, with those before, would show a party."""
        if not parties <= self._runs.get(run, parties):
            raise PolicyError("a party that left this run may not come back into it", "parties")
        rows = [*self._sets.get(subject, []), parties]
        names = [name for name in roster.names if not shown_alone([name], rows, roster)]
        if len(names) < len(roster.names):
            alone = next(name for name in roster.names if name not in names)
            raise PolicyError(
                f"with what was opened before, this total would show {alone}'s own sum", "parties"
            )


def subject_of(statistic: str, question: str) -> str:
    """What an opening is about, to the rule of sets: the question; all that are released count as
    one, for the margins of one may be another."""
    return RELEASE if statistic in RELEASED else question


def shown_alone(names: list[str], sets: Iterable[frozenset[str]], roster: Roster) -> bool:
    """Whether the sum over these parties follows from sums of one question over these sets."""
    rows = [[float(name in members) for name in roster.names] for members in set(sets)]
    target = [float(name in names) for name in roster.names]
    rank = np.linalg.matrix_rank(np.array(rows))
    return bool(np.linalg.matrix_rank(np.array([*rows, target])) == rank)


def opened_total(
    charter: Charter,
    private: PrivateKey,
    rules: Rules,
    openings: Openings,
    log: Log,
    run: str,
    content: RecordDict,
) -> RecordDict:
    """The total of a transcript, if it may be opened; of a question's, what the rules leave of it.

    Raises what speaks against it.
    """
    transcript, request = (
        Transcript.from_bytes(read(content, "transcript")),
        Request.from_record(content),
    )
    terms, roster = transcript.terms, charter.roster
    if request.charter != charter.digest:
        raise PeerError("coordinator: sends a question under another charter")
    if not charter.allows(request.statistic):
        raise PolicyError(f"the charter does not allow '{request.statistic}'", "analyses")
    if len(terms.parties) < charter.minimum_parties:
        raise PolicyError(
            f"a total of {len(terms.parties)} parties is not opened, "
            f"the charter requires {charter.minimum_parties}",
            "parties",
        )
    if not terms.query.startswith(f"{run}-"):
        raise PeerError("coordinator: sends a query of another run")
    form = form_from_json(read(content, "form").decode())
    if fields_of(form) != tuple(terms.layout.fields):
        raise PeerError("coordinator: sends another form of the total than the parties packed")
    parties = frozenset(terms.parties)
    subject = subject_of(request.statistic, terms.question.hex())
    openings.check(run, subject, parties, roster)
    authority = KeyAuthority(private, rules, openings.queries)
    authority.enrol(roster)
    total = authority.open(None, transcript, request, form)
    reply = Reply.of(charter.key.by[0] if charter.key else "", total, None).to_record()
    log_opened(log, run, transcript, request.statistic, total)
    openings.note(run, terms.query, subject, parties)
    return reply


def log_opened(log: Log, run: str, transcript: Transcript, statistic: str, total: Sums) -> None:
    """What an opener lets out: a total, or what its rules leave of one; shown: cells of it."""
    terms, by_rules = transcript.terms, statistic in RELEASED
    log.append(
        "release",
        run=run,
        query=terms.query,
        statistic=statistic,
        hiding="released by rules" if by_rules else "total opened",
        arrays=len(total.arrays),
        values=sum(array.size for array in total.arrays.values()),
        bytes=sum(array.nbytes for array in total.arrays.values()),
        rows=total.rows,
        key_bits=terms.layout.key_bits,
        question=terms.question.hex(),
        parties=sorted(terms.parties),
        **({"shown": int(total["shown"].sum())} if "shown" in total.arrays else {}),
    )


def with_form(form: Form) -> bytes:
    """The public form of a total, as `opened_total` reads it."""
    return form_to_json(form).encode()


# Keys.


def deal_authority(folder: Path, charter_file: Path, bits: int, passphrase: str) -> Charter:
    """A new key for this supervisor, and the charter that names it; all members sign it anew."""
    identity, charter = identity_of(folder), Charter.read(charter_file)
    name = identity.card.name
    if charter.member(name).role != "supervisor":
        raise ConfigurationError(f"{charter_file}: {name} is not a supervisor")
    private = generate(bits)
    save_private(folder / KEY_FILE, private, passphrase)
    new_charter = with_key(charter, private.public, name)
    write(charter_file, new_charter, {})
    with open_log(folder / LOG_NAME, identity, charter=new_charter.digest) as log:
        log.append("key", event=f"made, {bits} bits", fingerprint=private.public.fingerprint)
    return new_charter


def deal_shares(charter_file: Path, out: Path, bits: int) -> Charter:
    """A key that is cut among the insurers and forgotten: a sealed share for each, in a folder."""
    charter = Charter.read(charter_file)
    roster = charter.roster
    split, parts = shares.deal(generate(bits), roster.names)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number, (name, share) in enumerate(parts.items(), start=1):
        sealed_share = shares.seal_share(share, roster[name])
        record = {"holder": name, "split": split.to_bytes().hex(), "share": sealed_share.hex()}
        write_whole(out / f"{number}-{SHARE_FILE}", canonical(record), 0o600)
    new_charter = with_key(charter, split.public, split)
    write(charter_file, new_charter, {})
    return new_charter


def unlocked(folder: Path, passphrase: str) -> PrivateKey:
    """The supervisor's key. Raises :class:`ConfigurationError`."""
    try:
        return load_private(folder / KEY_FILE, passphrase)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{folder / KEY_FILE}: no such file; make the key with: lab keys deal"
        ) from None
    except KeyFileRefused as error:
        raise ConfigurationError(str(error)) from None
