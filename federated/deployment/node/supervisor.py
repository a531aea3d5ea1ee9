"""The supervisor: it opens one total at a time, by the rules of the key authority and the charter.

Beyond the checks of `secure_agg.transcript.examine` it enforces the charter: a minimum of parties, a
party that left a run or was named too often stays out of it, and nothing is opened for sets of parties from which the sum of
fewer than that minimum would follow (`openings`). What it opened is on disk before a total leaves.

Where the charter says that parties may leave, that holds for each question by itself, and two nearly
identical questions, with and without a party, nearly show that party's sum.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import RecordDict

from federated.deployment.audit_logs import LOG_NAME, open_log
from federated.deployment.charter import Charter, with_key, write
from federated.deployment.folders import charter_of, identity_of
from federated.deployment.node.openings import Openings, subject_of
from federated.hiding.paillier import KeyAuthority
from federated.hiding.protocol import fields_of
from federated.joined.product import is_alone, joined_sum
from federated.joined.protection import checked_total
from federated.joined.sums.factors import Knowledge, Owner
from federated.messages import Form, Reply, Request, form_from_json, form_to_json, read
from federated.party.release import RELEASED
from lab.audit.log_writer import Log
from lab.errors import ConfigurationError, PeerError, PolicyError
from lab.files import canonical, write_whole
from lab.privacy.disclosure import Rules
from lab.sums import Sums
from secure_agg import shares
from secure_agg.errors import FaultyParty, KeyFileRefused
from secure_agg.keys import PrivateKey, generate, load_private, save_private
from secure_agg.transcript import Terms, Transcript

KEY_FILE, SHARE_FILE = "paillier.key", "share.json"


def opened_total(
    charter: Charter,
    private: PrivateKey,
    rules: Rules,
    openings: Openings,
    log: Log,
    run: str,
    content: RecordDict,
    owner: Owner | None = None,
    *,
    known: Knowledge = Knowledge.NOTHING,
) -> RecordDict:
    """The total of a transcript, if it may be opened; of a question's, what the rules leave of it.

    owner: who holds a column, where the parties are joined sides; known: what they know of
    common rows. Raises what speaks against it.
    """
    transcript, request = (
        Transcript.from_bytes(read(content, "transcript")),
        Request.from_record(content),
    )
    terms, roster = transcript.terms, charter.roster
    form = form_from_json(read(content, "form").decode())
    _check_asked(charter, run, transcript.terms, request, form, owner)
    parties = frozenset(terms.parties)
    subject = subject_of(request.statistic, terms.question.hex())
    openings.check(run, subject, parties, charter)
    authority = KeyAuthority(private, rules, openings.queries)
    authority.enrol(roster)
    try:
        total = authority.open(None, transcript, request, form)
    except FaultyParty as error:
        others = parties - set(error.culprits)
        blame = {"parties": sorted(others), "named": sorted(error.culprits)}
        log.append("fault", run=run, query=terms.query, what=str(error), **blame)
        openings.note_fault(run, terms.query, others, error.culprits)
        raise
    pairs = charter.pairs
    if owner is not None and pairs is not None:
        persons = max(pairs.minimum_persons, rules.minimum_count.persons)
        joined = None if is_alone(request, owner, known) else joined_sum(request, owner)
        total = checked_total(joined, total, request.statistic, persons)
    reply = Reply.of(charter.key.by[0] if charter.key else "", total, None).to_record()
    log_opened(log, run, transcript, request.statistic, total)
    openings.note(run, terms.query, subject, parties)
    return reply


def _check_asked(
    charter: Charter, run: str, terms: Terms, request: Request, form: Form, owner: Owner | None
) -> None:
    """Raises what speaks against opening what is asked, before anything is opened."""
    if request.charter != charter.digest:
        raise PeerError("coordinator: sends a question under another charter")
    if not charter.allows(request.statistic):
        raise PolicyError(f"the charter does not allow '{request.statistic}'", "analyses")
    least = charter.minimum_parties if owner is None else len(charter.roster.names)
    if len(terms.parties) < least:
        raise PolicyError(
            f"a total of {len(terms.parties)} parties is not opened, the charter requires {least}",
            "parties",
        )
    if terms.of_shares != (owner is not None):
        raise PeerError(
            "coordinator: sends shares of joined sides for sums of parties, or these for those"
        )
    if not terms.query.startswith(f"{run}-"):
        raise PeerError("coordinator: sends a query of another run")
    if fields_of(form) != tuple(terms.layout.fields):
        raise PeerError("coordinator: sends another form of the total than the parties packed")


def readmit(folder: Path, name: str, who: str) -> None:
    """Let a party into totals again that was named too often. who: lets it in, for the log.

    Raises :class:`ConfigurationError` for a name that is no insurer's, :class:`LogError` while the
    supervisor's process runs.
    """
    identity = identity_of(folder)
    charter = charter_of(folder, identity.card.name)
    if name not in charter.roster.names:
        raise ConfigurationError(
            f"{name}: is no insurer; the charter's insurers are {', '.join(charter.roster.names)}"
        )
    with open_log(folder / LOG_NAME, identity, charter=charter.digest) as log:
        openings = Openings(folder)
        log.append("approval", statistic=f"readmission of {name}", by=who)
        openings.readmit(name)


def log_opened(log: Log, run: str, transcript: Transcript, statistic: str, total: Sums) -> None:
    """What an opener lets out: a total, or what its rules leave of one; shown: cells of it."""
    terms, by_rules = transcript.terms, statistic in RELEASED
    log.append(
        "release",
        run=run,
        query=terms.query,
        statistic=statistic,
        hiding="released by rules" if by_rules else "total opened",
        **volume_of(total),
        rows=total.rows,
        key_bits=terms.layout.key_bits,
        question=terms.question.hex(),
        parties=sorted(terms.parties),
        **({"shown": int(total["shown"].sum())} if "shown" in total.arrays else {}),
    )


def volume_of(total: Sums) -> dict[str, int]:
    """How much was opened: arrays, values in them, bytes of these."""
    arrays = total.arrays.values()
    return {
        "arrays": len(arrays),
        "values": sum(array.size for array in arrays),
        "bytes": sum(array.nbytes for array in arrays),
    }


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
    keep_key(folder, private, passphrase)
    new_charter = with_key(charter, private.public, name)
    write(charter_file, new_charter, {})
    with open_log(folder / LOG_NAME, identity, charter=new_charter.digest) as log:
        log.append("key", event=f"made, {bits} bits", fingerprint=private.public.fingerprint)
    return new_charter


def keep_key(folder: Path, private: PrivateKey, passphrase: str) -> None:
    """A key in a supervisor's folder, and the memory of what is opened with it beside it."""
    save_private(folder / KEY_FILE, private, passphrase)
    Openings.begin(folder)


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
