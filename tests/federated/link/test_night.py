"""The nightly comparison among processes: restarts in the middle, and letters that are wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from federated.link.desk_folder import read_desk
from federated.link.night import (
    NightRole,
    agreed_terms,
    coordinator_night,
    payer_night,
)
from federated.link.ring import COORDINATOR
from federated.link.service import DeskReply, asked, party_log
from lab.errors import ConfigurationError, PeerError
from lab.files import canonical, write_whole
from secure_agg.errors import FaultyParty
from tests.federated.link.test_desk import IDENTITIES, addresses, running
from tests.federated.link.test_duplicates import BILL, CLAIM, PAYERS, charter, table

TABLES = {
    "fund": table((1, "F9", "P1", 3, 80)),
    "north": table(BILL),
    "south": table((1, "S2", "P1", 3, 80), (7, "S1", "P1", 20, 500)),
}


def homes(folder: Path, **changes: Any) -> Path:
    """A folder for each role with what was agreed on."""
    cards = {name: identity.card for name, identity in IDENTITIES.items()}
    shared = agreed_terms(charter(**changes), PAYERS, cards, addresses())
    for name in IDENTITIES:
        (folder / name).mkdir(parents=True)
        write_whole(folder / name / "desk.json", canonical(shared.model_dump(mode="json")))
    return folder


@contextmanager
def role(folder: Path, name: str, patience: float = 30.0) -> Iterator[NightRole]:
    identity = IDENTITIES[name]
    with party_log(identity, folder / name) as log:
        yield NightRole(folder / name, identity, folder / "post", log, patience)


def take_part(folder: Path, name: str, patience: float = 30.0) -> Any:
    with role(folder, name, patience) as one:
        if name == COORDINATOR:
            return coordinator_night(one)
        return payer_night(one, TABLES[name])


def all_roles(folder: Path) -> dict[str, Any]:
    outcomes: dict[str, Any] = {}

    def run(name: str) -> None:
        try:
            outcomes[name] = take_part(folder, name)
        except Exception as error:
            outcomes[name] = error

    threads = [threading.Thread(target=run, args=(name,)) for name in IDENTITIES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def check(outcomes: dict[str, Any]) -> None:
    rows = {name: outcomes[name].matches.to_numpy().tolist() for name in PAYERS}
    assert rows["fund"] == [[0, "visit", "south"]]
    assert rows["north"] == [[0, "visit", "south"]]
    assert rows["south"] == [[0, "visit", "fund"], [1, "visit", "north"]]
    assert outcomes[COORDINATOR]["names"].tolist() == [1, 1]


def test_a_night_by_letters_finds_what_one_process_finds_and_opens_the_desk(tmp_path: Path) -> None:
    check(all_roles(homes(tmp_path)))
    folders = {name: read_desk(tmp_path / name) for name in IDENTITIES}
    with running(folders):
        assert asked(folders["fund"], "fund", CLAIM) == DeskReply("invoice", ("north", "south"))


def test_a_role_that_stopped_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = homes(tmp_path)
    with pytest.raises(PeerError, match="coordinator: announced no night"):
        take_part(folder, "south", patience=0)
    with role(folder, COORDINATOR):
        pass
    with pytest.raises(PeerError, match="north: its letter did not come in 0 s"):
        take_part(folder, "south", patience=0)
    first = (folder / "post" / "ring-32.letter").read_bytes()
    check(all_roles(folder))
    assert (folder / "post" / "ring-32.letter").read_bytes() == first
    check(all_roles(folder))


def test_a_night_of_other_terms_or_of_nobody_is_refused(tmp_path: Path) -> None:
    folder = homes(tmp_path / "one")
    with role(folder, COORDINATOR):
        pass
    other = homes(tmp_path / "two", cap=9)
    shutil.copytree(folder / "post", other / "post")
    for content in (None, {"session": "0" * 64, "signature": "00"}, {"session": 7}):
        if content is not None:
            (other / "post" / "night.json").write_text(json.dumps(content))
        with pytest.raises(FaultyParty, match="coordinator: announced a night for other terms"):
            take_part(other, "north")


def test_a_night_that_was_before_is_refused(tmp_path: Path) -> None:
    folder = homes(tmp_path)
    check(all_roles(folder))
    (folder / "post").rename(folder / "old")
    check(all_roles(folder))
    shutil.rmtree(folder / "post")
    (folder / "old").rename(folder / "post")
    with pytest.raises(FaultyParty, match="coordinator: announces a night that was before"):
        take_part(folder, "north")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda post: _swap(post, "ring-0", "ring-32"), "a letter came from nobody"),
        (lambda post: _flip(post, "ring-0"), "fund: a letter in its name was altered"),
        (lambda post: _flip(post, "answer-65537"), "coordinator: a letter in its name was altered"),
    ],
)
def test_a_letter_that_was_changed_or_moved_is_refused_and_its_sender_named(
    tmp_path: Path, change: Any, words: str
) -> None:
    folder = homes(tmp_path)
    check(all_roles(folder))
    change(folder / "post")
    with pytest.raises(Exception, match=words):
        take_part(folder, "north")


def _swap(post: Path, one: str, other: str) -> None:
    first, second = post / f"{one}.letter", post / f"{other}.letter"
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def _flip(post: Path, name: str) -> None:
    data = bytearray((post / f"{name}.letter").read_bytes())
    data[-1] ^= 1
    (post / f"{name}.letter").write_bytes(bytes(data))


def test_a_letter_in_the_place_of_another_of_its_sender_is_refused(tmp_path: Path) -> None:
    folder = homes(tmp_path)
    check(all_roles(folder))
    post = folder / "post"
    (post / "ring-0.letter").write_bytes((post / "ring-33.letter").read_bytes())
    with pytest.raises(FaultyParty, match="fund: replays letter 33 as 0"):
        take_part(folder, "north")


def test_an_identity_of_another_is_refused(tmp_path: Path) -> None:
    folder = homes(tmp_path)
    refusal, log_file = (
        pytest.raises(ConfigurationError, match="takes no part"),
        folder / "elsewhere",
    )
    with party_log(IDENTITIES["south"], log_file) as log, refusal:
        NightRole(folder / "south", IDENTITIES["fund"].generate("south"), folder, log, 0)


# --- as processes ------------------------------------------------------------------------------


def command(*arguments: Any) -> list[str]:
    start = "from federated.cli.main import main; main()"
    return [sys.executable, "-c", start, "link", *map(str, arguments)]


def test_four_processes_one_of_them_killed_in_the_middle_compare_three_tables(
    tmp_path: Path,
) -> None:
    folder, terms = tmp_path / "desk", tmp_path / "link.toml"
    terms.write_text(
        'name = "t"\ncap = 4\n[rows]\npaid = "paid"\n'
        '[[key]]\nname = "visit"\ncolumns = ["person", "provider", "day", "claimed"]\n'
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(
        command("init", folder, *PAYERS, "--charter", terms), check=True, env=environment
    )

    def start(name: str) -> subprocess.Popen[bytes]:
        options: list[Any] = ["--post", folder / "post", "--patience", 120]
        if name != COORDINATOR:
            TABLES[name].to_csv(tmp_path / f"{name}.csv", index=False)
            options += ["--table", tmp_path / f"{name}.csv"]
        return subprocess.Popen(
            command("night", folder / name, *options), env=environment, stdout=subprocess.PIPE
        )

    coordinator, south = start(COORDINATOR), start("south")
    until = time.monotonic() + 120
    while not (folder / "post" / "ring-32.letter").exists() and time.monotonic() < until:
        time.sleep(0.05)
    south.send_signal(signal.SIGKILL)
    south.communicate()
    processes = {COORDINATOR: coordinator} | {name: start(name) for name in PAYERS}
    for name, process in processes.items():
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, f"{name}: {output.decode()}"
    matches = pd.read_csv(folder / "south" / "matches.csv")
    assert matches["row"].tolist() == [0, 1]
    assert pd.read_csv(folder / "coordinator" / "counts.csv")["names"].tolist() == [1, 1]
