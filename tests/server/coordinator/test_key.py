"""``lorica coordinator key``."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorica.common.errors import Code, LoricaError
from lorica.common.wire.signing import CoordinatorKey
from lorica.server.coordinator.cli.key import app


def test_the_public_key_is_all_of_standard_output(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    result = CliRunner().invoke(app, ["key", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{CoordinatorKey.load(path).public}\n"
    assert "LORICA_COORDINATOR_KEY" in result.stderr
    assert "PRIVATE" not in result.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("mine")
    result = CliRunner().invoke(app, ["key", str(path)])
    assert isinstance(result.exception, LoricaError)
    assert result.exception.code is Code.COORDINATOR_KEY
    assert path.read_text() == "mine"


def test_a_key_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["key", str(tmp_path / "absent" / "key.pem")])
    assert isinstance(result.exception, LoricaError)
    assert result.exception.code is Code.STORAGE_DENIED


@pytest.mark.parametrize("arguments", [[], ["key"], ["kez", "x"]])
def test_bad_arguments_end_with_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2
