"""Every row of docs/lifecycle.md has a command, and the commands run in their order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorica.common.cli.command import app
from tests.client.choice.test_ranking import variant
from tests.client.cli.test_forget import make
from tests.conftest import make_small_backbone

PAGE = Path(__file__).resolve().parents[2] / "docs" / "lifecycle.md"
SERVES = "lorica serve"
"""Listens until it is told to end: tests/common/saved/serving runs it."""


def rows() -> list[list[str]]:
    """Cells of the table of the circle, the page's first."""
    after = PAGE.read_text().partition("\n|")[2]
    found = f"|{after}".partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found[2:]]


def test_every_row_has_a_command_and_says_what_it_is_for() -> None:
    assert len(rows()) >= 16
    for step in rows():
        assert len(step) == 3 and step[1], step
        assert re.fullmatch(r"`lorica [^`]+`", step[2]), step


def notes(path: Path, patients: range) -> None:
    """Two notes of every patient."""
    lines = ["text,label,patient,ward"]
    for patient in patients:
        for number in range(2):
            word, label = ("card", "money") if patient % 2 else ("fever", "health")
            lines.append(
                f"{word} note {number} of {patient},{label},P-{patient:03d},w{patient % 3}"
            )
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.slow("two simulations, an ONNX export and a dozen further commands")
def test_the_circle_runs_from_the_first_row_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a small backbone in the place of the embedded one."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    small = make_small_backbone(tmp_path / "models" / "small")
    variant(small, tmp_path / "models" / "other", None)
    notes(tmp_path / "notes.csv", range(180))
    notes(tmp_path / "test.csv", range(500, 540))
    notes(tmp_path / "public.csv", range(600, 640))
    (plan,) = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "plan.toml").write_text(f'[backbone]\nsource = "models/small"\n\n{plan}')
    make(tmp_path / "site", small)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORICA_STORE", "none")
    for _, _, cell in rows():
        line = cell.strip("`").replace("embedded", "models/small")
        words = shlex.split(line)[1:]
        if line.startswith(SERVES):
            words.append("--help")
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{line}: {done.output} {done.exception}"
    for made in (
        "evaluation/evaluation.html",
        "kept/benefit.json",
        "student/distilled.json",
        "exported/onnx/model.onnx",
    ):
        assert (tmp_path / made).is_file(), made
    assert (tmp_path / "runs" / "second" / "adapter" / "head.safetensors").is_file()
