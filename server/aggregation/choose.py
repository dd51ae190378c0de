"""Which rule a round's stage calls for."""

from __future__ import annotations

from lorica.common.adapter.state import State
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import Stage, returned, stage_of
from lorica.common.privacy.of_plan import public_privacy
from lorica.server.aggregation import aggregator
from lorica.server.aggregation.aggregator import Aggregator
from lorica.server.aggregation.means.robust import Robust
from lorica.server.aggregation.means.server_optimizer import ServerOptimizer
from lorica.server.aggregation.sums.class_sums import ClassSums
from lorica.server.aggregation.sums.gradient import GradientStep


def rule_of_round(plan: RunPlan, round: int, state: State, memory: State) -> Aggregator:
    """A fresh rule for a round.

    Args:
        plan: the run.
        round: its number, from 1.
        state: the global state that it starts from.
        memory: the coordinator's optimiser after the last round.
    """
    stage = stage_of(plan, round)
    names = returned(plan, round, state)
    if stage is Stage.LOCAL:
        return _of_local_steps(plan, state, names, memory)
    sigma = public_privacy(plan).of_round(round).noise_multiplier
    if stage is Stage.CLASS_SUMS:
        center = plan.adapter.center == "labels"
        return ClassSums(state, noise_multiplier=sigma, center=center)
    return GradientStep(state, names, plan, round, noise_multiplier=sigma, memory=memory)


def _of_local_steps(plan: RunPlan, state: State, names: list[str], memory: State) -> Aggregator:
    """The method's rule, with the plan's server optimiser after and its robust rule before it."""
    optimizer = None
    if plan.server.local_optimizer != "none":
        optimizer = ServerOptimizer(plan.server, memory)

    def method() -> Aggregator:
        return aggregator(plan.aggregation.method, state, names, optimizer)

    return method() if plan.aggregation.robust == "none" else Robust(plan, state, names, method)
