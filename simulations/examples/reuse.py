"""Develop a model, then reuse it: a run's merged result is the backbone of the next run.

All by the command line, as a user would do it: ``lorica simulate`` the source task, ``lorica
export`` its adapter, ``lorica simulate`` the target task from the first backbone and from the
exported one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorica.common.backbone.files import weights_sha256
from lorica.common.plan import RunPlan
from lorica.common.plan.io import to_toml
from lorica.server.results.folder import SUMMARY

_LAST_LINES = 12


@dataclass(frozen=True)
class Reuse:
    """What the second run reached, by the task's headline metric on the coordinator's test data."""

    metric: str
    source: float
    """Score of the source run on its own task."""
    first: float
    """Score of the second run on the first backbone."""
    exported: float
    """The same on the exported one."""

    @property
    def gain(self) -> float:
        """What starting from the exported backbone gave."""
        return self.exported - self.first


def source_then_target(folder: Path, source: RunPlan, target: RunPlan) -> Reuse:
    """Run the source task, export, run the target task twice.

    Args:
        folder: where plans, runs and the exported backbone go.
        source: the first run; its adapter must change the backbone (kind "lora" or "bitfit").
        target: the second run, on the same backbone.

    Raises:
        RuntimeError: a command failed; the message ends with what it said.
    """
    for name, plan in (("source", source), ("target", target)):
        (folder / f"{name}.toml").write_text(to_toml(plan), encoding="utf-8")
    _lorica(folder, "simulate", "source.toml", "--out", "source")
    _lorica(folder, "export", "source/adapter", "--out", "backbone")
    _lorica(folder, "simulate", "target.toml", "--out", "first")
    settings = {"source": folder / "backbone", "sha256": weights_sha256(folder / "backbone")}
    sets = [
        part for key, value in settings.items() for part in ("--set", f"backbone.{key}={value}")
    ]
    _lorica(folder, "simulate", "target.toml", *sets, "--out", "second")
    found = {name: _summary(folder / name) for name in ("source", "first", "second")}
    scores = {name: float(summary["score"]) for name, summary in found.items()}
    metric = str(found["second"]["headline"])
    return Reuse(metric, scores["source"], scores["first"], scores["second"])


def _lorica(folder: Path, command: str, *arguments: str) -> None:
    """One command of ``lorica`` in a process of its own, in a folder."""
    own_store = {"LORICA_HOME": str(folder / "home")}
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lorica"), command, *arguments],
        cwd=folder,
        env=os.environ | own_store,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-_LAST_LINES:])
        raise RuntimeError(f"lorica {command} ended with {done.returncode}:\n{said}")


def _summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    return found
