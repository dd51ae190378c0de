"""Records with a table at a site: one record's part of a release is bounded, and bad cells cost
nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorica.client.ledger import MemoryLedger
from lorica.client.mechanism.noise import SeededNoise
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import State, pack_state, unpack_state
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.data.table import Table
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import sent
from lorica.common.tasks import task_of
from lorica.common.tasks.run_data import load_data
from lorica.common.wire.messages import Request
from tests.tasks import plan_of, rows_of, write_backbone, write_data

SUMS, HEAD, LORA = 1, 2, 4
KINDS = ["text-table-classification", "image-table-classification"]


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, small_backbone: Path, tmp_path: Path) -> Any:
    """Plan (round 1 class sums, 2 and 3 the head, 4 and 5 LoRA) and 12 records, task by task."""
    kind = request.param
    data = write_data(tmp_path, kind, rows_of(kind, 12))
    backbone = write_backbone(tmp_path / "images", kind, small_backbone)
    plan = plan_of(kind, backbone, data).replace(
        data={"test": str(data)},
        privacy={"epsilon": math.inf, "clip_norm": 0.5},
        training={"lora": "always", "lora_rounds": 2, "lora_sample_rate": 1.0},
        aggregation={"method": "fedavg"},
        rounds={"count": 5},
    )
    return plan, load_data(plan).train


def hostile(records: Records) -> Records:
    """The last record's cells as far off as a cell can be."""
    assert records.table is not None
    cells = {name: records.table.cells(name) for name in records.table.names}
    cells["age"][-1] = "-1e308"
    cells["ward"][-1] = ""
    return replace(records, table=Table.of(cells, "here"))


def state_of(plan: RunPlan, size: float) -> State:
    """A global adapter away from the start."""
    generator = torch.Generator().manual_seed(4)
    start = task_of(plan).start(load_backbone(plan.backbone))
    return {
        name: tensor + size * torch.randn(tensor.shape, generator=generator)
        for name, tensor in start.items()
    }


def request(plan: RunPlan, round: int, state: State) -> Request:
    names = sent(plan, round, state)
    return Request(plan, "r", round, pack_state({name: state[name] for name in names}))


def release(plan: RunPlan, round: int, records: Records, state: State) -> State:
    trainer = LocalTrainer("a", records, noise=lambda run, r: SeededNoise(run, r))
    reply = trainer.train(request(plan, round, state))
    assert reply.status == "ok", reply.reason
    return unpack_state(reply.blob)


@pytest.mark.parametrize("size", [0.1, 1e3])
@pytest.mark.parametrize("round", [SUMS, HEAD, LORA])
def test_a_record_changes_a_release_by_no_more_than_the_clip_norm(
    made: Any, round: int, size: float
) -> None:
    """Without noise, with and without a record of hostile cells, under any global adapter."""
    plan, records = made
    whole, state = hostile(records), state_of(plan, size)
    without = whole.take(range(len(whole) - 1))
    found, less = (release(plan, round, part, state) for part in (whole, without))
    apart = torch.cat([(found[name] - less[name]).flatten().double() for name in found]).norm()
    bound = 1.0 if round == SUMS else plan.privacy.clip_norm
    assert 0 < float(apart) <= bound * (1 + 1e-4)


@pytest.mark.parametrize("cell", ["NaN", "sixty", "inf"])
def test_a_cell_that_is_no_number_ends_a_run_before_anything_is_charged(
    made: Any, cell: str
) -> None:
    """And the coordinator hears neither the cell nor its column."""
    plan, records = made
    plan = plan.replace(privacy={"epsilon": 8.0})
    assert records.table is not None
    cells = {name: records.table.cells(name) for name in records.table.names}
    cells["age"][3] = cell
    ledger = MemoryLedger(plan.privacy.delta)
    trainer = LocalTrainer(
        "a",
        replace(records, table=Table.of(cells, "here")),
        noise=lambda run, r: SeededNoise(run, r),
        ledger=ledger,
    )
    with pytest.raises(LoricaError) as caught:
        trainer.train(request(plan, SUMS, state_of(plan, 0.1)))
    assert caught.value.code is Code.DATA_UNFIT
    assert "record 4" in caught.value.detail and repr(cell) in caught.value.detail
    for private in (cell, "age", "record 4"):
        assert private not in caught.value.public_reason
    assert not ledger.history().charges
