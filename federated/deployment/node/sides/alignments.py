"""A side's alignments with the other sides of its pairs: in turns, each logged, and kept on disk.

An alignment is made once for a state of the table's keys. Each one that is begun could try out other
identifiers, so there are few, ever; its name is used once. What a side remembers between turns is in
memory alone: one that was lost is begun anew under another name.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from federated.deployment.audit_logs import LOG_NAME
from federated.deployment.charter import Charter
from federated.deployment.node.rules.refusals import Refusal
from federated.deployment.node.sides.equations import begin_memory
from federated.joined.alignment import Agreement, Alignment, PairedSide, advance, begin
from federated.joined.letters import LETTER, sealed, unsealed
from federated.joined.protection import INTERRUPTED
from federated.messages import message_of, read
from lab.audit.log_writer import Log
from lab.errors import ConfigurationError, PeerError
from lab.files import add_line, added_lines, write_whole
from lab.tables.identifiers import KeyTexts
from secure_agg import wire
from secure_agg.errors import FaultyParty, SecureAggError
from secure_agg.identity import Identity

ALIGNMENTS, BEGUN = "alignments", "begun.jsonl"
ALIGNED = b"LABALN01"


@dataclass(frozen=True)
class KeptAlignment:
    """One that was made. place: (rows,) the spine's row of each row that has a key, -1 for none;
    session: its name; keys: the digest of the keys that it is of; met: (rows,) where this side was told,
    whether the other has the row too; row_keys: (rows, 32) where one side was told."""

    session: str
    keys: str
    size: int
    place: NDArray[np.int64]
    met: NDArray[np.bool_] | None = None
    row_keys: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class _Begun:
    """One that is not over. turn: of its last letter; keys: digest of those that it is of."""

    session: str
    turn: int
    side: PairedSide
    keys: str


class Alignments:
    """The alignments of a member that is a side of pairs. folder: the node's; most: begun with each
    other side, ever. Raises :class:`ConfigurationError` for a damaged file."""

    def __init__(self, folder: Path, identity: Identity, charter: Charter, most: int) -> None:
        assert charter.pairs is not None
        self._folder, self._identity, self._most = folder / ALIGNMENTS, identity, most
        self._charter, self._pairs = charter, charter.pairs
        self._name = identity.card.name
        self._work: dict[str, _Begun] = {}
        self._folder.mkdir(mode=0o700, exist_ok=True)
        begin_memory(self._folder / BEGUN, folder / LOG_NAME)

    def made(self, keys: KeyTexts) -> dict[str, KeptAlignment]:
        """Those that stand for these keys, by the other side."""
        state, alignments = digest_of(keys), {}
        for peer in self._pairs.peers(self._name):
            one = self._read(peer)
            if one is not None and one.keys == state:
                alignments[peer] = one
        return alignments

    def turn(
        self, keys_of: Callable[[], KeyTexts], content: RecordDict, run: str, log: Log
    ) -> RecordDict:
        """A letter of the other side comes, one to it goes; at the end the alignment is on disk.

        keys_of: the keys of the table, for the first turn.
        """
        peer, session, turn = self._place_of(content)
        if turn == 0:
            keys = keys_of()
            side, message = self._begin(peer, session, keys)
            state = digest_of(keys)
        else:
            side, message = self._advance(peer, session, turn, content)
            state = self._work[peer].keys
        self._work[peer] = _Begun(session, turn, side, state)
        if side.result is not None:
            self._keep(peer, session, state, side.result)
            del self._work[peer]
            for record in side.result.records:
                log.append("alignment", run=run, peer=peer, session=session, **record)
        letter = wire.join(ALIGNED, [part for k, v in message.items() for part in (k.encode(), v)])
        purpose = self._purpose(session, turn, self._name, peer)
        reply = message_of(
            letter=sealed(self._identity, self._charter.roster[peer], purpose, letter)
        )
        size = -1 if side.result is None else side.result.size
        reply["aligned"] = ConfigRecord({"size": size})
        return reply

    def _place_of(self, content: RecordDict) -> tuple[str, str, int]:
        head = content.config_records.get("align", ConfigRecord())
        peer, session, turn = head.get("peer"), head.get("session"), head.get("turn")
        if peer not in self._pairs.peers(self._name) or type(turn) is not int:
            raise PeerError(
                "coordinator: asks for an alignment with whom the charter does not pair"
            )
        return str(peer), str(session), turn

    def _begin(
        self, peer: str, session: str, keys: KeyTexts
    ) -> tuple[PairedSide, Mapping[str, bytes]]:
        path, pairs = self._folder / BEGUN, self._pairs
        try:
            begun = [str(name) for other, name in added_lines(path) if other == peer]
        except (ValueError, TypeError):
            raise ConfigurationError(
                f"{path}: is damaged, so that nobody knows what was aligned before; put a copy back"
            ) from None
        if session in begun:
            raise Refusal("alignment", "this alignment was begun before; begin one of another name")
        if len(begun) >= self._most:
            raise Refusal(
                "alignment",
                f"{len(begun)} alignments with {peer} were begun, and joined.alignments of node.toml "
                f"allows {self._most}, ever",
            )
        add_line(path, [peer, session])
        insurer = self._name if peer == pairs.fund else peer
        parts = [self._charter.digest.encode(), session.encode(), insurer.encode()]
        agreement = Agreement(pairs.learns, pairs.cap, wire.digest(ALIGNED, parts))
        try:
            return begin(agreement, pairs.role(self._name), [keys], secrets.token_bytes(32))
        except SecureAggError as error:  # of one's own set
            raise ConfigurationError(str(error)) from None

    def _advance(
        self, peer: str, session: str, turn: int, content: RecordDict
    ) -> tuple[PairedSide, Mapping[str, bytes]]:
        work = self._work.get(peer)
        if work is None or (work.session, work.turn) != (session, turn - 1):
            raise Refusal(INTERRUPTED, "this side is at no such turn of an alignment; begin anew")
        purpose = self._purpose(session, turn - 1, peer, self._name)
        card = self._charter.roster[peer]
        letter = unsealed(self._identity, card, purpose, read(content, "letter"))
        try:
            parts = wire.split(ALIGNED, letter, 0, wire.MOST_PARTS)
            names = [wire.text(name) for name in parts[::2]]
            return advance(work.side, dict(zip(names, parts[1::2], strict=True)))
        except FaultyParty as error:
            deed = str(error).partition(": ")[2]
            raise PeerError(f"{peer}: {deed}", peer) from None
        except (SecureAggError, ValueError):
            raise PeerError(f"{peer}: sent a letter that is of no alignment", peer) from None

    def _purpose(self, session: str, turn: int, sender: str, receiver: str) -> bytes:
        names = (self._charter.digest, session, sender, receiver)
        return wire.join(
            LETTER, [b"alignment", bytes([turn % 256]), *(name.encode() for name in names)]
        )

    # On disk.

    def _keep(self, peer: str, session: str, keys: str, result: Alignment) -> None:
        header: dict[str, object] = {"session": session, "keys": keys, "size": result.size}
        header |= {"peer": peer, "pairs": self._pairs.model_dump_json()}
        arrays = {"place": result.place, "header": np.array(json.dumps(header))}
        for name, array in (("common", result.common), ("row_keys", result.keys)):
            if array is not None:
                arrays[name] = array
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        write_whole(self._path(peer), file.getvalue(), 0o600)

    def _read(self, peer: str) -> KeptAlignment | None:
        path = self._path(peer)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                header, place = json.loads(str(arrays["header"])), arrays["place"]
                told = [arrays.get(name) for name in ("common", "row_keys")]
            keyless = self._pairs.learns in ("insurer", "fund") and told[1] is None
            if keyless or header["pairs"] != self._pairs.model_dump_json():
                return None
            return KeptAlignment(header["session"], header["keys"], header["size"], place, *told)
        except (OSError, ValueError, KeyError):
            raise ConfigurationError(
                f"{path}: is damaged; remove it, and the next run aligns anew"
            ) from None

    def _path(self, peer: str) -> Path:
        return self._folder / f"{hashlib.sha256(peer.encode()).hexdigest()[:16]}.npz"


def digest_of(keys: KeyTexts) -> str:
    """SHA-256 of the keys of a table's rows, in their order."""
    return wire.digest(ALIGNED, (text.encode() for text in keys.texts)).hex()
