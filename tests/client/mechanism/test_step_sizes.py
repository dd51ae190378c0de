"""What is clipped together has the bound that the coordinator takes it to have."""

from __future__ import annotations

import math

import pytest
import torch

from lorica.client.mechanism.dp_sgd import KeepGradient, NoisyOptimizer
from lorica.client.mechanism.noise import SeededNoise
from lorica.client.mechanism.step_sizes import parameter_groups
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import unit_bound

B, HEAD = "layer.lora_B.weight", "head.weight"


@pytest.mark.parametrize(
    ("kind", "names", "shares"),
    [
        ("masked-lm", [B], [0.2]),
        ("text-classification", [HEAD], [1.0]),
        ("text-classification", [HEAD, B], [0.8, 0.2]),
    ],
    ids=str,
)
def test_the_noise_of_a_release_is_what_the_coordinator_takes_it_for(
    kind: str, names: list[str], shares: list[float]
) -> None:
    plan = RunPlan().replace(
        task={"kind": kind},
        data={"label": "" if kind == "masked-lm" else "label"},
        privacy={"clip_norm": 0.7},
        training={"gradient_clip_share": 0.2, "lora": "always"},
        rounds={"count": 20, "warm_start": 0},
    )
    groups = parameter_groups(plan, {n: torch.nn.Parameter(torch.zeros(4, 3)) for n in names})
    bounds = [group["clip_norm"] for group in groups]
    assert bounds == pytest.approx([0.7 * math.sqrt(share) for share in shares])
    optimizer = NoisyOptimizer(
        KeepGradient(groups), noise=SeededNoise(1), noise_multiplier=2.0, expected_batch_size=1
    )
    assert optimizer.max_grad_norm == pytest.approx(unit_bound(plan, 20))
