"""Layer-wise rates: by closed form, at sites and at the coordinator."""

from __future__ import annotations

import pytest
import torch

from lorica.client.mechanism.step_sizes import layerwise_adam
from lorica.common.adapter.layer_rates import layer_factors
from lorica.common.plan import RunPlan
from lorica.server.aggregation.sums.gradient import GradientStep

NAMES = [
    "base_model.model.encoder.layer.5.attention.self.query.lora_B.weight",
    "base_model.model.encoder.layer.3.attention.self.query.lora_B.weight",
    "encoder.layer.2.output.dense.bias",
    "head.weight",
    "head.center",
]


def test_the_highest_adapted_layer_and_the_head_have_the_whole_rate() -> None:
    assert list(layer_factors(NAMES, 0.5).values()) == [1.0, 0.25, 0.125, 1.0, 1.0]
    assert set(layer_factors(NAMES, 1.0).values()) == {1.0}
    assert layer_factors(["head.weight"], 0.5) == {"head.weight": 1.0}


def test_steps_at_a_site_are_those_of_adam_at_the_layers_own_rate() -> None:
    """Against torch's Adam with a parameter group for every rate, over three steps."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(4, 3, generator=generator) for _ in range(3)]
    ours = [torch.nn.Parameter(value.clone()) for value in values]
    theirs = [torch.nn.Parameter(value.clone()) for value in values]
    rates = [1.0, 0.5, 0.25]
    groups = [{"params": ours, "lr": 0.01, "clip_norm": 1.0}]
    named = {str(number): parameter for number, parameter in enumerate(ours)}
    mine = layerwise_adam(groups, named, dict(zip(named, rates, strict=True)))
    adam = torch.optim.Adam(
        [{"params": [p], "lr": 0.01 * rate} for p, rate in zip(theirs, rates, strict=True)]
    )
    assert len(mine.param_groups) == 1  # what is clipped together stays together
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        mine.step()
        adam.step()
    for one, other, value in zip(ours, theirs, values, strict=True):
        assert not torch.equal(one, value)
        torch.testing.assert_close(one.detach(), other.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_the_coordinators_first_step_falls_with_the_layer(decay: float) -> None:
    """Closed form: Adam's first step without noise is the most there is without noise, four times
    the plan's rate."""
    plan = RunPlan().replace(
        task={"labels": ["a", "b"]},
        adapter={"layers": [3, 5]},
        privacy={"epsilon": "inf", "clip_norm": 0.5},
        training={"lora": "always", "lora_rounds": 4, "layer_decay": decay},
        aggregation={"method": "ffa"},
        server={"lora_rate": 0.2},
        rounds={"count": 8},
    )
    names = NAMES[:2]
    start = {name: torch.zeros(6, 2) for name in names} | {"head.weight": torch.zeros(2, 6)}
    rule = GradientStep(start, names, plan, 5, noise_multiplier=0.0, memory={})
    rule.add({name: torch.ones(6, 2) for name in names}, 1.0)
    found = rule.finish()
    step = 4 * 0.2
    for name, factor in zip(names, [1.0, decay**2], strict=True):
        torch.testing.assert_close(found[name], torch.full((6, 2), -step * factor))
