"""Augmentation multiplicity: views are averaged before clipping, so the sensitivity stays C."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lorica.client.mechanism.noise import NoiseSource, SeededNoise
from lorica.client.training.session import Session
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import Stage
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.tasks import task_of
from lorica.common.tasks.views import ViewNumbers
from tests.images import image_plan, image_records, make_image_backbone

CLIP = 0.01  # every gradient is longer


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_backbone(tmp_path_factory.mktemp("augment") / "vit", "vit")


def planned(vit: Path, views: int, **privacy: object) -> RunPlan:
    return image_plan(
        vit,
        privacy={"epsilon": float("inf"), "clip_norm": CLIP, **privacy},
        training={"augmentations": views},
        rounds={"count": 4, "warm_start": 0.0},
    )


def noise() -> NoiseSource:
    return SeededNoise(0, "augmentations", "site", 1)


def gradient_sum(plan: RunPlan, records: Records) -> torch.Tensor:
    """The head's clipped gradient sum without noise, weight and bias in the metric of clipping."""
    backbone = load_backbone(plan.backbone)
    session = Session(plan, backbone, records, cache_bytes=2**20, secret=b"of the test")
    session.read()
    session.load(task_of(plan).start(backbone), Stage.HEAD)
    found = session.train(1, PrivacyEvent(0.0, 1.0, 1), noise())
    return torch.cat([found["head.weight"].flatten(), found["head.bias"]]).double()


@pytest.mark.parametrize("views", [1, 4, 16])
def test_one_record_changes_the_sum_by_at_most_the_clip_norm(vit: Path, views: int) -> None:
    """Neighbouring data sets, with the views of the shared records kept."""
    plan, records = planned(vit, views), image_records(7)
    fewer = records.take(range(6))
    moved = gradient_sum(plan, records) - gradient_sum(plan, fewer)
    assert float(moved.norm()) == pytest.approx(CLIP, rel=1e-3)  # all of it, never more
    one = gradient_sum(plan, records.take([0]))
    assert float(one.norm()) == pytest.approx(CLIP, rel=1e-3)


def test_a_records_gradient_is_the_mean_over_its_views(vit: Path) -> None:
    """Against plain autograd on the views one by one; a bound that cuts nothing."""
    plan, records = planned(vit, 3, clip_norm=1e3), image_records(1)
    found = gradient_sum(plan, records)
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    model = task.model(backbone).eval()
    model.load_state(task.start(backbone))
    inputs = task.encode(backbone, records)
    source = noise()
    source.poisson_mask  # noqa: B018 - the session draws the key before the batch
    random = ViewNumbers(source.gaussian((8,), 1.0).numpy().tobytes())
    rows, views = np.zeros(3, dtype=np.int64), np.arange(3)
    outputs = task.outputs_of_views(model, inputs, rows, views, random)
    total = torch.zeros(0)
    for row in range(3):
        model.zero_grad()
        torch.nn.functional.cross_entropy(
            outputs[row : row + 1], task.targets(records, inputs).of(rows[:1])
        ).backward(retain_graph=True)
        gradient = torch.cat([model.head.weight.grad.flatten(), 0.1 * model.head.bias.grad])
        total = gradient if row == 0 else total + gradient
    torch.testing.assert_close(found, total.double() / 3, rtol=1e-4, atol=1e-6)


def test_units_of_several_records_average_views_and_records(vit: Path) -> None:
    """Two records of one person count as one gradient."""
    plan = planned(vit, 4, unit="person")
    records = image_records(2)
    pair = Records(records.texts, records.labels, ["p", "p"], records.groups, records.images)
    found = gradient_sum(plan, pair)  # clipped in float64, returned in float32
    assert float(found.norm()) <= CLIP * (1 + 1e-7)


def test_views_of_a_record_are_drawn_anew_in_every_step(vit: Path) -> None:
    plan, records = planned(vit, 2, clip_norm=1e3), image_records(1)
    backbone = load_backbone(plan.backbone)
    session = Session(plan, backbone, records, cache_bytes=2**20, secret=b"of the test")
    session.read()
    session.load(task_of(plan).start(backbone), Stage.HEAD)
    event, source = PrivacyEvent(0.0, 1.0, 1), noise()
    first = session.train(1, event, source)["head.weight"]
    assert not torch.equal(first, session.train(2, event, source)["head.weight"])
