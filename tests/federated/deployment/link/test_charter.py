"""What payers tell each other stands in the charter that all members sign."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from federated.cli.main import lab
from federated.deployment import charter as charters
from federated.link.charter import SHIPPED, LinkCharter
from lab.errors import ConfigurationError
from tests.rigs.members import Members, members


def command(*arguments: object) -> str:
    done = CliRunner().invoke(lab, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory, authority_key: Any) -> Members:
    return members(tmp_path_factory.mktemp("members"), authority_key.public)


def agreed(folder: Path) -> Path:
    """The shipped terms, of the city's fund."""
    text = SHIPPED.read_text().replace("public = 300_000", '"city fund" = 300_000')
    text = text.replace('fund = "public"', 'fund = "city fund"')
    file = folder / "link.toml"
    file.write_text(text)
    return file


def test_a_charter_with_a_link_is_signed_anew_and_says_what_is_told(
    five: Members, tmp_path: Path
) -> None:
    path = tmp_path / "charter.json"
    five.sign(path)
    assert "version" in command("charter", "link", path, agreed(tmp_path))
    charter, absent = charters.read(path)
    assert charter.link == LinkCharter.read(tmp_path / "link.toml")
    assert set(absent) == set(five.identities) and charter.version == five.charter.version + 1
    assert charter.digest != five.charter.digest
    shown = command("charter", "show", path)
    assert "by 'invoice', 'visit', 'near visit', of a payer's own that another has it" in shown
    assert "asked of city fund, which sees neither person nor answer: hypertension" in shown


def test_a_link_of_a_payer_that_is_no_member_is_refused(five: Members, tmp_path: Path) -> None:
    path = tmp_path / "charter.json"
    five.sign(path)
    with pytest.raises(ConfigurationError, match="link: 'public' is no insurer of the charter"):
        command("charter", "link", path, SHIPPED)
    assert charters.read(path).charter == five.charter
