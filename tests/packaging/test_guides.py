"""The commands of docs/coordinator.md do what it says, in its order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorica.common.cli.command import app

DOCS = Path(__file__).resolve().parents[2] / "docs"
SERVICES = re.compile(r"lorica (coordinator start|site start|run watch)\b")
WITHOUT_SERVICES = {
    "lorica coordinator check": "services",  # do not run
    "lorica site check": "network",  # nor are they reached
    "lorica run resume": "LOR-741",  # a queued run needs no such thing
}


def blocks(language: str) -> list[str]:
    text = (DOCS / "coordinator.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_coordinators_guide_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = ["cardiology", "urology"]
    rows = "".join(f"note {i} of the patient,{labels[i % 2]}\n" for i in range(200))
    (tmp_path / "records.csv").write_text(f"text,label\n{rows}")
    (plan,) = blocks("toml")
    (tmp_path / "plan.toml").write_text(plan)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORICA_STORE", "none")
    ran = 0
    for line in "".join(blocks("sh")).splitlines():
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            monkeypatch.setenv(name, str(tmp_path / Path(value).name))
            continue
        words = shlex.split(line)
        assert words.pop(0) == "lorica", line
        if SERVICES.match(line):
            words.append("--help")
        if line.startswith("lorica run stop"):
            words.append("--no-wait")
        done = CliRunner().invoke(app, words)
        said = f"{done.output} {done.exception}"
        expected = [word for start, word in WITHOUT_SERVICES.items() if line.startswith(start)]
        if expected:
            assert done.exit_code and expected[0] in said, f"{line}: {said}"
        else:
            assert done.exit_code == 0, f"{line}: {said}"
        ran += 1
    assert ran >= 18
    assert (tmp_path / "coordinator" / "runs" / "first" / "plan.toml").exists()


@pytest.mark.parametrize("unit", ["lorica-coordinator.service", "lorica-trainer.service"])
def test_what_the_guide_points_to_exists(unit: str) -> None:
    assert (DOCS.parent / "docker" / "systemd" / unit).exists()
