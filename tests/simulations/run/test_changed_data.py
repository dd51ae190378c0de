"""A simulation resumed on changed data is refused, or goes on by the user's word."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.simulations.run.simulate import Simulation, resumable

LINES = [f"{word} again,{label}" for word, label in [("card", "money"), ("fever", "health")] * 30]


def write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(["text,label", *lines]) + "\n")


def run(plan: RunPlan, out: Path, **how: bool) -> None:
    Simulation(plan, out, Console(file=io.StringIO())).run(report=False, **how)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: ["bank again,money", *lines[1:]],
        lambda lines: [lines[0].replace("money", "health"), *lines[1:]],
        lambda lines: lines[::-1],
        lambda lines: lines[2:],
    ],
    ids=["a text", "a label", "the order", "fewer"],
)
def test_changed_data_are_refused_unless_the_change_is_meant(
    change: Callable[[list[str]], list[str]], tmp_path: Path, small_backbone: Path
) -> None:
    write(tmp_path / "d.csv", LINES)
    plan = RunPlan().replace(
        backbone={"source": str(small_backbone)},
        data={"train": str(tmp_path / "d.csv")},
        privacy={"delta": 1e-3},
        adapter={"kind": "head"},
        training={"expected_batch_size": 8},
        rounds={"count": 1},
        simulation={"sites": 2},
    )
    out = tmp_path / "run"
    run(plan, out)
    run(resumable(out), out, resume=True)
    write(tmp_path / "d.csv", change(LINES))
    with pytest.raises(LoricaError) as caught:
        run(resumable(out), out, resume=True)
    assert caught.value.code is Code.DATA_CHANGED
    assert "--changed-data" in caught.value.mend
    run(resumable(out), out, resume=True, changed_data=True)
