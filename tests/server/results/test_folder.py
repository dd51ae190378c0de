"""The results folder: never overwritten, valid at every moment, mended on resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lorica.common.adapter.state import State
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.server.results.folder import CHECKPOINT, PLAN, ROUNDS, RunFolder
from lorica.server.results.round import RoundRecord, SiteRound
from tests.conftest import largest_file

A_PLAN = RunPlan().replace(task={"labels": ["money", "Gesundheit — ü"]}, rounds={"count": 9})


def state(round: int, size: int = 50) -> State:
    generator = torch.Generator().manual_seed(round)
    return {"head.weight": torch.randn(2, size, generator=generator), "head.bias": torch.zeros(2)}


def memory(round: int) -> State:
    """What the optimizer remembers; nothing at the start."""
    generator = torch.Generator().manual_seed(100 + round)
    moments = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    held = {"m.head.weight": moments, "v.head.weight": moments[0, :1].clone()}
    return held if round else {}


def record(round: int) -> RoundRecord:
    site = SiteRound("Spital Zürich", "ok", weight=40, update_norm=0.1 + round, bytes_up=99)
    late = SiteRound("b", "late", "LOR-504: no answer\nin time")
    return RoundRecord(round, [site, late], accuracy=0.5, bytes_up=99, seconds_by_phase={"a": 1.0})


def made(path: Path, rounds: int = 3) -> RunFolder:
    """A folder after rounds 0 to ``rounds``."""
    folder = RunFolder(path)
    folder.create(A_PLAN)
    for round in range(rounds + 1):
        folder.save("r", A_PLAN, record(round), state(round), memory(round))
    return folder


def assert_stands_at(folder: RunFolder, round: int) -> None:
    """The folder is valid and its last whole round is this one."""
    checkpoint = folder.checkpoint(A_PLAN)
    assert checkpoint is not None
    assert (checkpoint.run, checkpoint.round) == ("r", round)
    for found, expected in ((checkpoint.state, state(round)), (checkpoint.memory, memory(round))):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())
    assert folder.rounds() == [record(number) for number in range(round + 1)]
    assert folder.plan() == A_PLAN
    known = {PLAN, ROUNDS, CHECKPOINT}
    assert {path.name for path in folder.path.iterdir()} == known, "no temporary file is left"


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    assert_stands_at(made(tmp_path / "a" / "b"), 3)


def test_a_new_folder_has_a_plan_and_no_rounds(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(A_PLAN)
    assert folder.checkpoint(A_PLAN) is None
    assert folder.rounds() == []
    assert folder.plan().fingerprint == A_PLAN.fingerprint


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    made(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(LoricaError) as caught:
        RunFolder(tmp_path / "run").create(A_PLAN.replace(rounds={"count": 1}))
    assert caught.value.code is Code.RUN_FOLDER_EXISTS
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_path_that_is_no_folder_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LoricaError) as caught:
        RunFolder(tmp_path / where).create(A_PLAN)
    assert caught.value.code is Code.STORAGE_DENIED
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_a_plan_holds_no_run(tmp_path: Path) -> None:
    with pytest.raises(LoricaError) as caught:
        RunFolder(tmp_path).plan()
    assert caught.value.code is Code.RUN_NOT_RESUMABLE


def test_rounds_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    """A crash between the two writes of a round: the line is there, the checkpoint is not."""
    folder = made(tmp_path / "run")
    with (folder.path / ROUNDS).open("a") as file:
        file.write(json.dumps(record(4).to_dict()) + "\n")
    assert_stands_at(folder, 3)


@pytest.mark.parametrize("length", [1, 20, 200])
def test_half_a_line_is_dropped(tmp_path: Path, length: int) -> None:
    folder = made(tmp_path / "run")
    with (folder.path / ROUNDS).open("a") as file:
        file.write(json.dumps(record(4).to_dict())[:length])
    assert_stands_at(folder, 3)
    folder.save("r", A_PLAN, record(4), state(4), memory(4))
    assert_stands_at(folder, 4)


def test_lines_without_a_checkpoint_are_dropped(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", rounds=0)
    (folder.path / CHECKPOINT).unlink()
    assert folder.checkpoint(A_PLAN) is None
    assert folder.rounds() == []


def header_without(key: str) -> bytes:
    held = {"run": "r", "round": "3", "fingerprint": A_PLAN.fingerprint}
    return safetensors.torch.save(state(3), {k: v for k, v in held.items() if k != key})


GOOD = safetensors.torch.save(
    state(3), {"run": "r", "round": "3", "fingerprint": A_PLAN.fingerprint}
)
DAMAGED = {
    "empty": b"",
    "text": b"not a checkpoint",
    "cut in the header": GOOD[:30],
    "cut in the data": GOOD[:-9],
    "longer": GOOD + b"\0" * 8,
    "header overwritten": b"\xff" * 8 + GOOD[8:],
    "no metadata": safetensors.torch.save(state(3)),
    "no run": header_without("run"),
    "no round": header_without("round"),
    "no fingerprint": header_without("fingerprint"),
    "a round of text": safetensors.torch.save(
        state(3), {"run": "r", "round": "three", "fingerprint": A_PLAN.fingerprint}
    ),
}


@pytest.mark.parametrize("damage", sorted(DAMAGED))
def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    folder = made(tmp_path / "run")
    (folder.path / CHECKPOINT).write_bytes(DAMAGED[damage])
    lines = (folder.path / ROUNDS).read_bytes()
    with pytest.raises(LoricaError) as caught:
        folder.checkpoint(A_PLAN)
    assert caught.value.code is Code.RUN_NOT_RESUMABLE
    assert (folder.path / CHECKPOINT).read_bytes() == DAMAGED[damage]
    assert (folder.path / ROUNDS).read_bytes() == lines


def test_a_checkpoint_of_another_plan_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    with pytest.raises(LoricaError) as caught:
        folder.checkpoint(A_PLAN.replace(privacy={"epsilon": 9.0}))
    assert caught.value.code is Code.PLAN_MISMATCH
    assert_stands_at(folder, 3)


def test_a_disk_that_fills_while_the_checkpoint_is_written_keeps_the_round_before(
    tmp_path: Path,
) -> None:
    folder = made(tmp_path / "run")
    with largest_file(4096), pytest.raises(LoricaError) as caught:
        folder.save("r", A_PLAN, record(4), state(4, size=5000), memory(4))
    assert caught.value.code is Code.STORAGE_FULL
    assert_stands_at(folder, 3)
    folder.save("r", A_PLAN, record(4), state(4), memory(4))
    assert_stands_at(folder, 4)


def test_a_disk_that_fills_while_a_line_is_written_keeps_the_round_before(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    lines = (folder.path / ROUNDS).read_bytes()
    with largest_file(len(lines) + 50), pytest.raises(LoricaError) as caught:
        folder.save("r", A_PLAN, record(4), state(4), memory(4))
    assert caught.value.code is Code.STORAGE_FULL
    assert (folder.path / ROUNDS).read_bytes() == lines
    assert_stands_at(folder, 3)


def test_a_disk_that_is_full_at_the_start_leaves_no_run_behind(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with largest_file(100), pytest.raises(LoricaError) as caught:
        folder.create(A_PLAN)
    assert caught.value.code is Code.STORAGE_FULL
    assert list(folder.path.iterdir()) == []
    folder.create(A_PLAN)


@pytest.mark.parametrize("left", [CHECKPOINT, ROUNDS])
def test_what_is_left_of_a_run_without_its_plan_is_not_overwritten(
    tmp_path: Path, left: str
) -> None:
    folder = made(tmp_path)
    (tmp_path / PLAN).unlink()
    (tmp_path / ({CHECKPOINT, ROUNDS} - {left}).pop()).unlink()
    before = (tmp_path / left).read_bytes()
    with pytest.raises(LoricaError, match=left.replace(".", r"\.")) as caught:
        folder.create(A_PLAN)
    assert caught.value.code is Code.RUN_FOLDER_EXISTS
    assert (tmp_path / left).read_bytes() == before
    assert not (tmp_path / PLAN).exists()


def of_stage(round: int, stage: str, accuracy: float, **more: bool) -> RoundRecord:
    """A round after which the sites measured ``accuracy``, and the coordinator 0.5."""
    made = replace(record(round), stage=stage, metrics={"accuracy": 0.5})
    return replace(made, site_metrics={"accuracy": accuracy}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dropped", "accuracy"), [(True, 0.7), (False, 0.4)])
def test_results_are_of_the_adapter_that_was_kept(
    tmp_path: Path, dropped: bool, accuracy: float
) -> None:
    """Sites measured LoRA in two rounds; where it was given up, those count for nothing."""
    folder = made(tmp_path / "run", 0)
    last = of_stage(4, "LoRA", 0.4, lora_dropped=dropped)
    for found in (of_stage(2, "head", 0.7), of_stage(3, "LoRA", 0.9), last):
        folder.save("r", A_PLAN, found, state(found.round), {})
    assert folder.results().site_metrics == {"accuracy": accuracy}
    assert folder.results().metrics == {"accuracy": 0.5}
