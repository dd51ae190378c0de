"""A node of Flower's simulation runtime knows its site from the plan alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.wire.messages import Request
from lorica.simulations.cluster.flower_node import SimulatedNode, trainer_of
from tests.conftest import make_small_backbone
from tests.simulations.run.test_simulate import write_csv


@pytest.fixture
def plan(tmp_path: Path) -> RunPlan:
    return RunPlan().replace(
        backbone={"source": str(make_small_backbone(tmp_path / "backbone"))},
        data={"train": str(write_csv(tmp_path / "data.csv", 60))},
        task={"labels": ["health", "money"]},
        simulation={"sites": 2},
    )


def node(number: int) -> SimulatedNode:
    config = {"partition-id": number, "num-partitions": 2}
    context = Context(
        run_id=1, node_id=number + 1, node_config=config, state=RecordDict(), run_config={}
    )
    return trainer_of(context)


def test_every_node_answers_for_its_part_of_the_plans_data(plan: RunPlan) -> None:
    replies = [node(number).capabilities(Request(plan, "run")) for number in (0, 1)]
    assert [reply.site for reply in replies] == ["site-00", "site-01"]
    assert sum(reply.weight for reply in replies) == 48, "a fifth of 60 is test data"
    other = plan.replace(simulation={"sites": 1})
    assert node(0).capabilities(Request(other, "run")).weight == 48


def test_a_node_for_which_the_data_have_no_part_is_refused(plan: RunPlan) -> None:
    with pytest.raises(LoricaError) as caught:
        node(2).capabilities(Request(plan, "run"))
    assert caught.value.code is Code.DATA_PARTITION
