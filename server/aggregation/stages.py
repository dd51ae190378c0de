"""Which rule a round's stage calls for."""

from __future__ import annotations

from lorica.common.plan import RunPlan
from lorica.common.site_privacy import public_privacy
from lorica.common.stages import Stage, stage_of, trained
from lorica.server.aggregation import aggregator
from lorica.server.aggregation.base import Aggregator
from lorica.server.aggregation.class_sums import ClassSums
from lorica.server.aggregation.gradient import GradientStep
from lorica.server.screening import State


def rule_of_round(plan: RunPlan, round: int, state: State, memory: State) -> Aggregator:
    """A fresh rule for a round.

    Args:
        plan: the run.
        round: its number, from 1.
        state: the global state that it starts from.
        memory: the coordinator's optimiser after the last round.
    """
    stage = stage_of(plan, round)
    if stage is Stage.LOCAL:
        return aggregator(plan.aggregation.method, state)
    sigma = public_privacy(plan).of_round(round).noise_multiplier
    if stage is Stage.CLASS_SUMS:
        return ClassSums(state, noise_multiplier=sigma)
    names = trained(plan, stage, state)
    return GradientStep(state, names, plan, round, noise_multiplier=sigma, memory=memory)
