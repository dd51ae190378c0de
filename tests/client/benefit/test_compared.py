"""A site's own models beside the federation's: trained on what is not set aside, and on no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorica.client.benefit.aside import SHARE, OwnRecords, own_records
from lorica.client.benefit.compared import compare_models
from lorica.client.benefit.tuning import tune
from lorica.client.mechanism.evaluation import set_aside
from lorica.common.adapter.state import State
from lorica.common.backbone.loading import backbone_of
from lorica.common.cache.prefix import PrefixCache
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks import task_of
from lorica.common.tasks.run_data import load_data
from tests.tasks import KINDS, plan_of, rows_of, write_backbone, write_data

SECRET = b"a secret of the site's own"


def own(kind: str, folder: Path, small_backbone: Path, count: int) -> tuple[RunPlan, OwnRecords]:
    """A plan of a task, and records of it with the first quarter set aside."""
    backbone = write_backbone(folder / "vit", kind, small_backbone)
    data = write_data(folder, kind, rows_of(kind, count))
    plan = plan_of(kind, backbone, data)
    records = load_data(plan).train  # without those for tests
    return plan, OwnRecords(records, np.arange(len(records)) < len(records) // 4, True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tasks_models_are_compared_and_training_helps(
    kind: str, tmp_path: Path, small_backbone: Path
) -> None:
    """The own model is above the start's metric on records it has not seen, and repeatable."""
    plan, given = own(kind, tmp_path, small_backbone, 120)
    backbone = backbone_of(plan)
    start = task_of(plan).start(backbone)
    found = compare_models(plan, backbone, given, start, draws=20)
    models = found.decision.models
    assert models["start"].score == models["federated"].score
    assert models["own"].score == models["tuned"].score > models["start"].score
    assert found.trained_on + found.decision.units == len(given.records)
    again = compare_models(plan, backbone, given, start, draws=20)
    assert again.content() == found.content()
    assert all(torch.equal(again.states["own"][n], t) for n, t in found.states["own"].items())
    center = "head.center"
    assert all(
        torch.equal(found.states["own"][name], tensor)
        for name, tensor in start.items()
        if not name.startswith("head.") or name == center
    )


def mixed_up(plan: RunPlan, given: OwnRecords) -> State:
    """A good model of records whose labels are exchanged: what a federation of others gives."""
    names = given.records.labels
    other = [plan.task.labels[1 - plan.task.labels.index(name)] for name in names]
    records = Records(given.records.texts, other, given.records.units, given.records.groups)
    backbone = backbone_of(plan)
    task = task_of(plan)
    swapped = OwnRecords(records, given.aside, True)
    return compare_models(plan, backbone, swapped, task.start(backbone), draws=0).states["own"]


def test_where_labels_mean_something_else_the_guard_keeps_the_sites_own_model(
    tmp_path: Path, small_backbone: Path
) -> None:
    plan, given = own("text-classification", tmp_path, small_backbone, 160)
    found = compare_models(plan, backbone_of(plan), given, mixed_up(plan, given))
    models = found.decision.models
    assert models["federated"].score < 0.3 < 0.8 < models["own"].score
    assert found.decision.kept in ("own", "tuned") and models["own"].better == 1.0


def test_a_good_federation_is_kept_beside_a_site_with_few_records(
    tmp_path: Path, small_backbone: Path
) -> None:
    plan, many = own("text-classification", tmp_path, small_backbone, 400)
    backbone = backbone_of(plan)
    good = compare_models(plan, backbone, many, task_of(plan).start(backbone), draws=0)
    few = OwnRecords(many.records.take(range(120)), np.arange(120) < 100, True)
    found = compare_models(plan, backbone, few, good.states["own"])
    assert found.decision.kept == "federated" and found.trained_on == 20


def test_the_factors_are_trained_where_that_is_asked_for(
    tmp_path: Path, small_backbone: Path
) -> None:
    plan, given = own("text-classification", tmp_path, small_backbone, 60)
    backbone = backbone_of(plan)
    start = task_of(plan).start(backbone)
    found = compare_models(plan, backbone, given, start, trains="adapter", draws=0)
    changed = {n for n, t in found.states["own"].items() if not torch.equal(t, start[n])}
    assert any(".lora_B." in name for name in changed) and "head.weight" in changed


def test_what_is_set_aside_is_the_plans_or_a_share_by_the_same_secret(
    tmp_path: Path, small_backbone: Path
) -> None:
    plan, given = own("text-classification", tmp_path, small_backbone, 300)
    judged = plan.replace(rounds={"evaluate_every": 1})
    found = own_records(given.records, judged, SECRET)
    assert found.unseen and np.array_equal(found.aside, set_aside(given.records, judged, SECRET))
    rest = own_records(given.records, plan, SECRET)
    assert not rest.unseen and abs(rest.aside.mean() - SHARE) < 0.08
    assert rest.aside[found.aside].all()  # a larger share of the same units


def test_no_epoch_that_is_worse_is_kept(tmp_path: Path, small_backbone: Path) -> None:
    """Records to judge by whose labels contradict those to train on: the start stays."""
    plan, given = own("text-classification", tmp_path, small_backbone, 80)
    backbone, task = backbone_of(plan), task_of(plan)
    state = compare_models(plan, backbone, given, task.start(backbone), draws=0).states["own"]
    half = len(given.records) // 2
    names = [
        name if row < half else plan.task.labels[1 - plan.task.labels.index(name)]
        for row, name in enumerate(given.records.labels)
    ]
    records = Records(given.records.texts, names, given.records.units, given.records.groups)
    model = task.model(backbone).eval()
    model.load_state(state)
    encoded = task.encode(backbone, records)
    cache, targets = PrefixCache(model, encoded), task.targets(records, encoded)
    found = tune(task, model, cache, targets, np.arange(half, 2 * half), np.arange(half))
    assert found.epoch == 0
    assert all(torch.equal(found.state[name], tensor) for name, tensor in state.items())


def test_too_few_records_are_refused(tmp_path: Path, small_backbone: Path) -> None:
    plan, given = own("text-classification", tmp_path, small_backbone, 20)
    backbone = backbone_of(plan)
    nothing: dict[str, Any] = {"records": given.records, "unseen": True}
    for aside in (np.zeros(len(given.records), np.bool_), np.ones(len(given.records), np.bool_)):
        with pytest.raises(LoricaError) as refused:
            compare_models(
                plan, backbone, OwnRecords(aside=aside, **nothing), task_of(plan).start(backbone)
            )
        assert refused.value.code is Code.DATA_TOO_FEW_RECORDS
