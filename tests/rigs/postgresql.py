"""A real PostgreSQL for tests: a cluster of its own in a temporary folder, on a free port."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

USER = "claims_reader"


@dataclass(frozen=True)
class Server:
    """A server that runs; ``address`` holds the password."""

    port: int
    password: str

    @property
    def address(self) -> str:
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/postgres"


def programs() -> Path | None:
    """Where initdb and postgres are: on the path, or where Debian puts them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    program = str(found[-1]) if found else shutil.which("initdb")
    return Path(program).resolve().parent if program else None


def nobody() -> dict[str, Any]:
    """Whom to run the server as: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@contextmanager
def server() -> Iterator[Server]:
    """Runs a server; skips the test, and says why, where there is none to run."""
    bin_folder = programs()
    if bin_folder is None:
        pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="lab-postgresql-"))
    password, who = secrets.token_urlsafe(12), nobody()
    try:
        (folder / "password").write_text(password)
        for path in (folder, folder / "password"):
            if who:
                os.chown(path, who["user"], who["group"])
        options = ["--no-sync", "-E", "UTF8", "--locale=C", "-A", "scram-sha-256"]
        data = folder / "data"
        program = [bin_folder / "initdb", "-D", data, "-U", USER]
        _run([*program, "--pwfile", folder / "password", *options], who)
        port = _free_port()
        options = ["-p", str(port), "-h", "127.0.0.1", "-c", "fsync=off"]
        process = subprocess.Popen(
            [bin_folder / "postgres", "-D", data, "-k", folder, *options],
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **who,
        )
        try:
            _wait(port, process)
            yield Server(port, password)
        finally:
            process.send_signal(signal.SIGINT)  # ends the sessions there are
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[Any], who: dict[str, Any]) -> None:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **who)
    if done.returncode:
        pytest.fail(f"initdb: {done.stderr.strip()}")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        with socket.socket() as sock:
            if process.poll() is None and sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail("the PostgreSQL server did not come up")
