"""Parameter groups of local steps, what is clipped together in each, and Adam by the layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from lorica.common.plan import RunPlan
from lorica.common.plan.stages import clip_share
from lorica.common.plan.tensors import Part, part_of

Parameters = Mapping[str, torch.nn.Parameter]


def parameter_groups(
    plan: RunPlan, trained: Parameters, factor: float = 1.0
) -> list[dict[str, Any]]:
    """The head and the rest, with their learning rates times ``factor`` and their clip norms, which
    together are :func:`lorica.common.plan.stages.unit_bound`."""
    training, bound = plan.training, plan.privacy.clip_norm
    head = [p for name, p in trained.items() if part_of(name) is Part.HEAD]
    lora = [p for name, p in trained.items() if part_of(name) is not Part.HEAD]
    share = clip_share(plan) if lora else 0.0
    groups = [
        (head, training.head_learning_rate, 1 - share),
        (lora, training.learning_rate, share),
    ]
    return [
        {"params": params, "lr": factor * rate, "clip_norm": bound * math.sqrt(part)}
        for params, rate, part in groups
        if params
    ]


def layerwise_adam(
    groups: list[dict[str, Any]], trained: Parameters, factors: Mapping[str, float]
) -> torch.optim.Adam:
    """Adam over the groups, whose steps are multiplied by a factor of each parameter's.

    The groups stay as they are, since they say what is clipped together.

    Args:
        groups: as for Adam.
        trained: the parameters by name.
        factors: of every one of them by name.
    """
    adam = torch.optim.Adam(groups)
    scaled = {p: factors[name] for name, p in trained.items() if factors[name] != 1.0}
    before: dict[torch.nn.Parameter, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        before.update({p: p.detach().clone() for p in scaled if p.grad is not None})

    @torch.no_grad()
    def shorten(*_: Any) -> None:
        for parameter, start in before.items():
            parameter.copy_(torch.lerp(start, parameter, scaled[parameter]))
        before.clear()

    if scaled:
        adam.register_step_pre_hook(keep)
        adam.register_step_post_hook(shorten)
    return adam
