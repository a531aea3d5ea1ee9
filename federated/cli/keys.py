"""`lab keys` and `lab holder`: the Paillier key, and the supervisor that opens totals with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from federated.cli.console import say, say_with_time

if TYPE_CHECKING:
    from secure_agg.keys import PrivateKey

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
ENVIRONMENT = "LAB_KEY_PASSPHRASE"


@click.group()
def keys() -> None:
    """The Paillier key: who may open totals."""


@keys.command("deal")
@click.argument("folder", type=FOLDER)
@click.option("--charter", "charter_file", required=True, type=FILE)
@click.option("--bits", type=int, default=3072, show_default=True)
@click.option("--split", is_flag=True, help="Cut it among all insurers, who open together.")
def deal_key(folder: Path, charter_file: Path, bits: int, split: bool) -> None:
    """Make the key: a supervisor's own, or cut among the insurers and forgotten.

    FOLDER is the supervisor's, or with --split a new one for the sealed shares. The charter gets
    the key, and all members sign it anew.

    \b
    lab keys deal supervisor --charter charter.json
    lab keys deal shares --charter charter.json --split
    """
    from federated.deployment.node import supervisor

    if split:
        new_charter = supervisor.deal_shares(charter_file, folder, bits)
        say(f"{folder}: one file for each insurer, to be its share.json; the key is forgotten")
        say("the exchange needs any one of them, for the part that is public")
    else:
        new_charter = supervisor.deal_authority(folder, charter_file, bits, _passphrase(new=True))
        say(f"{folder}: key of {bits} bits")
    say(f"charter version {new_charter.version}, {new_charter.digest}: all members sign it now")


@click.group()
def holder() -> None:
    """A supervisor's process: opens totals by the rule."""


@holder.command("serve")
@click.argument("folder", type=FOLDER)
def serve_holder(folder: Path) -> None:
    """Open totals until Ctrl-C or SIGTERM.

    \b
    lab holder serve supervisor
    """
    from federated.deployment.node.process import Node

    Node(folder, say_with_time, lambda: unlock(folder)).serve()
    say_with_time("stopped")


@holder.command("readmit")
@click.argument("folder", type=FOLDER)
@click.argument("name")
@click.option("--by", required=True, help="Who lets it in, for the log.")
def readmit_party(folder: Path, name: str, by: str) -> None:
    """Let an insurer into totals again that was named too often; stop the supervisor first.

    \b
    lab holder readmit supervisor ping-an --by 'Li Wei'
    """
    from federated.deployment.node.supervisor import readmit

    readmit(folder, name, by)
    say(f"{name}: is in totals again; next: lab holder serve {folder}")


def unlock(folder: Path) -> PrivateKey:
    from federated.deployment.node.supervisor import unlocked

    return unlocked(folder, _passphrase(new=False))


def _passphrase(new: bool) -> str:
    """From the environment, or asked for; it never stands on a command line."""
    passphrase = os.environ.get(ENVIRONMENT)
    if passphrase:
        return passphrase
    return str(click.prompt("passphrase of the key", hide_input=True, confirmation_prompt=new))
