"""Parameter groups: what is clipped together has the plan's whole bound, whatever is trained."""

from __future__ import annotations

import math

import pytest
import torch

from lorica.client.dp_sgd import KeepGradient, NoisyOptimizer
from lorica.client.noise import SeededNoise
from lorica.client.step_sizes import parameter_groups
from lorica.common.plan import RunPlan

B, HEAD = "layer.lora_B.weight", "head.weight"


@pytest.mark.parametrize(
    ("names", "shares"), [([B], [1.0]), ([HEAD], [1.0]), ([HEAD, B], [0.9, 0.1])], ids=str
)
def test_noise_is_of_the_plans_clip_norm_whatever_is_trained(
    names: list[str], shares: list[float]
) -> None:
    """The coordinator takes σ·C for the noise of every release, a task without a head included."""
    plan = RunPlan().replace(privacy={"clip_norm": 0.7}, training={"lora_clip_share": 0.1})
    parameters = {name: torch.nn.Parameter(torch.zeros(4, 3)) for name in names}
    groups = parameter_groups(plan, parameters)
    bounds = [group["clip_norm"] for group in groups]
    assert bounds == pytest.approx([0.7 * math.sqrt(share) for share in shares])
    optimizer = NoisyOptimizer(
        KeepGradient(groups), noise=SeededNoise(1), noise_multiplier=2.0, expected_batch_size=1
    )
    assert optimizer.max_grad_norm == pytest.approx(0.7)
