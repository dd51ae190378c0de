"""What a stage ends with: means over its iterates, which cost no ε (post-processing)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from lorica.common.adapter.state import State
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import Stage, place_in_stage, stage_of
from lorica.common.plan.tensors import Part, part_of

_MEAN = "average."


def averaged(
    plan: RunPlan, round: int, start: State, changed: State, before: Mapping[str, torch.Tensor]
) -> tuple[State, State]:
    """Means over the iterates that a stage of gradient rounds has come to.

    *LoRA rounds*: the plain mean of the states after the last ``server.lora_averaging`` of them,
    of every tensor, head and factors alike (Polyak and Ruppert's averaging of the tail, as in
    stochastic weight averaging, arXiv 1803.05407; for DP-SGD De et al., arXiv 2204.13650). Noise
    that a step adds and a later one takes back is not in it. A and B are averaged apart: the mean's
    product differs from the mean of the products by the covariance of A and B over those rounds,
    which is of the order of the square of what they move in them.

    *Head rounds*, with ``server.averaging``: the exponential mean of the head's iterates since the
    stage began.

    Args:
        plan: the run.
        round: its number.
        start: the state that the round began with.
        changed: what its step changes, float64.
        before: the coordinator's memory after the last round.

    Returns:
        what takes the place of ``changed`` (in a stage's last round alone, else nothing), and what
        is to be remembered.

    Epsilon: none; iterates follow from noised sums.
    """
    number, rounds = place_in_stage(plan, round)
    server = plan.server
    found: State = {}
    if stage_of(plan, round) is Stage.LORA and server.lora_averaging:
        many = number - rounds + math.ceil(server.lora_averaging * rounds)  # iterates by now
        if many > 0:
            state = {**start, **changed}
            for name, value in state.items():
                held = before[_MEAN + name].double() if many > 1 else value.double()
                found[name] = held + (value.double() - held) / many
    elif server.averaging:
        for name, value in changed.items():
            if part_of(name) is Part.HEAD:
                held = start[name] if number == 1 else before[_MEAN + name]
                found[name] = server.averaging * held.double() + (1 - server.averaging) * value
    memory = {_MEAN + name: value for name, value in found.items()}
    return (found if number == rounds else {}), memory
