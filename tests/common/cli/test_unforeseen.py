"""An error that nobody foresaw: a coded sentence, and a log for its user alone."""

from __future__ import annotations

import re
import stat
import sys
from pathlib import Path

import pytest

from lorica.common.cli import command


def fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> int:
    def app() -> None:
        raise error

    monkeypatch.setattr(command, "app", app)
    with pytest.raises(SystemExit) as ended:
        command.run()
    return int(str(ended.value.code))


@pytest.mark.parametrize("error", [KeyError("text"), RuntimeError("a\nb"), AssertionError()])
def test_it_is_a_coded_sentence_with_the_place_of_a_log(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    monkeypatch.setenv("LORICA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", ["lorica", "predict", "a private text"])
    assert fails(monkeypatch, error) == 19
    said = capsys.readouterr().err
    assert "LOR-901" in said and type(error).__name__ in said and "Traceback" not in said
    (path,) = (tmp_path / "home" / "errors").iterdir()
    assert str(path) in re.sub(r"\s+", " ", said)
    log = path.read_text(encoding="utf-8")
    assert "Traceback" in log and "lorica" in log and "predict" in log
    assert "a private text" not in log
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_a_place_for_a_log_the_traceback_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").write_text("a file in its place")
    monkeypatch.setenv("LORICA_HOME", str(tmp_path / "home"))
    assert fails(monkeypatch, RuntimeError("gone")) == 19
    said = capsys.readouterr().err
    assert "LOR-901" in said and "Traceback" in said and "gone" in said
