"""The log of what a member told others over a link, as `lab audit verify` reads it."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from pathlib import Path

from lab.audit.log_writer import Log
from secure_agg.identity import Identity, signed_by

#: The log of a member's node is another: each is of one process, with its own end.
LOG, OF_LINK = "log.jsonl", ", link"


def party_log(
    identity: Identity, folder: Path, charter: str = "", name: str = "", of: str = OF_LINK
) -> Log:
    """A member's log of its link in this folder, signed by its own key.

    charter: its digest; name: the member's in it, if that is not the identity's; of: what the log is of
    """

    def check(key: bytes, message: bytes, signature: bytes) -> bool:
        return signed_by(key, b"log", message, signature)

    folder.mkdir(parents=True, exist_ok=True)
    card, sign = identity.card, partial(identity.sign, b"log")
    return Log(
        folder / LOG,
        f"{name or card.name}{of}",
        card.verifying,
        sign,
        check,
        charter=charter,
        version=version("insurance-privacy-lab"),
    )
