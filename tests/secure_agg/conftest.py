"""Keys for the tests: one frozen, so that answers can be known, and one fresh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from secure_agg.keys import PrivateKey, generate

settings.register_profile(
    "secure_agg", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("secure_agg")

# Public for ever, so of no use but here.
P = int(
    "f5e4e27cbf89dd994c04ec9ec3595ea9fccae114df51f09805cb255f5751a870"
    "1bee8f630f4b7b1e4a0df36d51e55b1d80bc34631a12d0faa0030ce991986bf0"
    "083fc1c4b0c64a1fef2fe0201c5f3e7e17476b18f949e89bb3e9279435a161e1"
    "ab1f1e6e296742de4fce9895f83879c1d33346853d6830803aa2eb3b64ec1397",
    16,
)
Q = int(
    "d8915a4b0aba35b3c6bf8e237639a557ed6d3e5d2d95ae356939c8466d2ffd29"
    "c6438e2d595e5219366fbda6aa236ee796f2d1bd1eaa57c3e3f52865a976decb"
    "de74aa0a7802c590c45672fa4f9997ebe27cb1ab83a3b0254a6ea753a8118caa"
    "3f2d0c2ba3534b5e066e737510e5109a509b25a0248ecff6e4a31c4185d5cf67",
    16,
)


@pytest.fixture(scope="session")
def private() -> PrivateKey:
    """A key of 2048 bits that is the same in every run."""
    return PrivateKey(P, Q)


@pytest.fixture(scope="session")
def fresh() -> PrivateKey:
    """A key of 2048 bits that is made for this run."""
    return generate(2048)


def in_a_child(file: str, private: PrivateKey) -> Any:
    """What a test file prints as JSON when it runs by itself, with memory of its own to measure."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, file, f"{private.p:x}", f"{private.q:x}"],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
