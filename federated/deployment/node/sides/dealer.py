"""The supervisor's part in products of joined sides: it deals randomness, and sees neither side's rows.

Each side's secret of a run is sealed to it, and what the fund's side needs for a sum follows from both.
The plan says which sum is next, so a deal is for the question that the solver stands at; it is logged.
"""

from __future__ import annotations

import json
import secrets

from flwr.app import ConfigRecord, RecordDict

from federated.deployment.charter import Charter
from federated.deployment.pairs import correction_purpose, secret_purpose
from federated.joined.letters import LETTER, sealed
from federated.joined.product import deal, joined_sum, turns
from federated.joined.protection import Pair
from federated.messages import Request, message_of
from federated.study.plan import StudyPlan
from lab.audit.log_writer import Log
from lab.errors import PeerError, PolicyError
from secure_agg import wire
from secure_agg.identity import Identity

SECRET_BYTES = 32


class PairDealer:
    """The dealer of a charter's pairs."""

    def __init__(self, charter: Charter, identity: Identity) -> None:
        if charter.pairs is None or charter.pairs.product != "triples":
            raise PolicyError("nothing is dealt for products here by the charter")
        self._pairs, self._roster, self._identity = charter.pairs, charter.roster, identity

    def begin(self, run: str, records: RecordDict, content: RecordDict) -> RecordDict:
        """The secrets of a run, each sealed to its side; those that a run has are dealt again.

        records: what is kept of the run; content: sizes of the spines, as the sides told them.
        """
        sizes = self._sizes(content)
        record = records.config_records.setdefault("dealer", ConfigRecord())
        record["sizes"] = json.dumps(sizes)
        parts = {}
        for insurer in self._pairs.peers(self._pairs.fund):
            both = record.setdefault(f"secrets {insurer}", secrets.token_bytes(2 * SECRET_BYTES))
            assert isinstance(both, bytes)
            sides = ((insurer, self._pairs.fund), (self._pairs.fund, insurer))
            for at, (name, peer) in enumerate(sides):
                secret = both[at * SECRET_BYTES : (at + 1) * SECRET_BYTES]
                purpose = secret_purpose(run, name, peer)
                parts[f"{name} with {peer}"] = sealed(
                    self._identity, self._roster[name], purpose, secret
                )
        return message_of(**parts)

    def deal(
        self,
        run: str,
        records: RecordDict,
        study: StudyPlan,
        request: Request,
        turn: object,
        log: Log,
    ) -> RecordDict:
        """What the fund's side needs for one turn of a sum, sealed to it, once.

        Raises :class:`PeerError`.
        """
        record = records.config_records.get("dealer")
        if record is None:
            raise PeerError("coordinator: asks for a deal before the sides had their secrets")
        if not request.query.startswith(f"{run}-"):
            raise PeerError("coordinator: asks for a deal in another run")
        deals = records.config_records.setdefault("deals", ConfigRecord())
        total, sizes = joined_sum(request, study.owner), json.loads(str(record["sizes"]))
        if total.form.made_by("triples") != "triples":
            raise PeerError("coordinator: asks for a deal for a sum that is made by Paillier")
        if type(turn) is not int or not 1 <= turn <= turns(total, "triples"):
            raise PeerError("coordinator: asks for a deal for a turn that the sum does not have")
        if f"{request.query} {turn}" in deals:
            raise PeerError("coordinator: asks for a deal that was made before")
        deals[f"{request.query} {turn}"] = True
        fund, parts = self._pairs.fund, {}
        for insurer in self._pairs.peers(fund):
            pair = Pair(insurer, fund, sizes[insurer])
            both, layout = record[f"secrets {insurer}"], pair.layout(request, total)
            assert isinstance(both, bytes)
            dealt = wire.join(LETTER, deal(layout, turn, both[:SECRET_BYTES], both[SECRET_BYTES:]))
            purpose = correction_purpose(request.query, turn, fund, insurer)
            parts[f"dealt {insurer}"] = sealed(self._identity, self._roster[fund], purpose, dealt)
            log.append(
                "deal",
                run=run,
                query=request.query,
                statistic=request.statistic,
                pair=pair.name,
                turn=turn,
                rows=pair.rows,
                products=[[t.left, t.right] for _, _, t in layout.products],
            )
        return message_of(**parts)

    def _sizes(self, content: RecordDict) -> dict[str, int]:
        try:
            values = json.loads(str(content.config_records["sizes"]["rows"]))
            sizes = {name: values[name] for name in self._pairs.peers(self._pairs.fund)}
            if any(type(rows) is not int or rows < 1 for rows in sizes.values()):
                raise ValueError
        except (KeyError, ValueError, TypeError):
            raise PeerError("coordinator: the sizes of spines are not readable") from None
        return sizes
