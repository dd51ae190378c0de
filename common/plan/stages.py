"""The stages of a run: what sites compute in a round, and which tensors travel for it.

==============  ==========================================  ==============  ==================
stage           a site computes                             trains, sends   is sent
==============  ==========================================  ==============  ==================
CLASS_SUMS      noised sums of each label's features        head.weight     the head
HEAD            noised gradient sum on frozen features      the head        the head
LORA            noised gradient sum through the encoder     as the method   the whole adapter
LOCAL           several DP-SGD steps                        as the method   the whole adapter
==============  ==========================================  ==============  ==================

In the first two stages the LoRA factors are those of the start: B is 0, the adapted encoder is
the backbone, and they need not travel. What a method leaves to the sites ("fedsa": B and the head)
they train in stage LOCAL but do not send; B is not sent to them either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import Enum

from lorica.common.plan.methods import METHODS, at_one_adapter, is_personal, is_trained
from lorica.common.plan.run import RunPlan
from lorica.common.plan.tensors import Part, part_of
from lorica.common.plan.traits import TRAITS


class Stage(Enum):
    """What a round is for."""

    CLASS_SUMS = "class sums"
    HEAD = "head"
    LORA = "LoRA"
    LOCAL = "local steps"

    @property
    def on_frozen_features(self) -> bool:
        """Whether the encoder is the backbone as it came."""
        return self in (Stage.CLASS_SUMS, Stage.HEAD)


_TESTS_IN_STAGE, _LEAST_APART = 10, 5
_HALF, _MOST_TO_FACTORS = 0.5, 0.9  # of C², where the plan names no share


def schedule(plan: RunPlan) -> list[tuple[Stage, int]]:
    """The stages of a run in order, each with its number of rounds (at least 1)."""
    count = plan.rounds.count
    warm = plan.warm_rounds
    if plan.training.mode == "local":
        parts = [(Stage.CLASS_SUMS, warm), (Stage.LOCAL, count - warm)]
    else:
        lora = plan.lora_rounds
        head = count - warm - lora
        parts = [(Stage.CLASS_SUMS, warm), (Stage.HEAD, head), (Stage.LORA, lora)]
    return [(stage, rounds) for stage, rounds in parts if rounds]


def stage_of(plan: RunPlan, round: int) -> Stage:
    """The stage of a round, from 1; of the first and the last for rounds before and after."""
    parts = schedule(plan)
    for stage, rounds in parts:
        if round <= rounds:
            return stage
        round -= rounds
    return parts[-1][0]


def unit_bound(plan: RunPlan, round: int) -> float:
    """The L2 norm that one unit's part of a round's gradient sum is clipped to, Δ; of class sums 1.

    Head and LoRA factors share privacy.clip_norm; a task without a head leaves the head's share
    unused.
    """
    if stage_of(plan, round) is Stage.CLASS_SUMS:
        return 1.0
    whole = TRAITS[plan.task.kind].head
    return plan.privacy.clip_norm * (1.0 if whole else math.sqrt(clip_share(plan)))


def clip_share(plan: RunPlan) -> float:
    """Share of C² that LoRA factors' gradients are clipped to where the head's have the rest."""
    training = plan.training
    if training.mode == "local":
        return training.lora_clip_share
    if training.gradient_clip_share:
        return training.gradient_clip_share
    traits = TRAITS[plan.task.kind]
    together = plan.privacy.private and traits.head and not traits.head_first
    return _MOST_TO_FACTORS if together else _HALF


def method_of(plan: RunPlan) -> str:
    """The method whose parts the sites train."""
    method = plan.aggregation.method
    return method if plan.training.mode == "local" else at_one_adapter(method)


def ever_trained(plan: RunPlan, names: Iterable[str]) -> list[str]:
    """Which of an adapter's tensors any round trains, in their order."""
    return [name for name in names if is_trained(method_of(plan), name)]


def place_in_stage(plan: RunPlan, round: int) -> tuple[int, int]:
    """Number of a round within its stage, from 1, and the stage's number of rounds."""
    number = round
    for _, rounds in schedule(plan):
        if number <= rounds:
            return number, rounds
        number -= rounds
    raise ValueError(f"the plan has no round {round}")


def place_of_tensor(plan: RunPlan, round: int, name: str) -> tuple[int, int]:
    """The same among the rounds of the stage that train the tensor ``name``; the round does."""
    number, rounds = place_in_stage(plan, round)
    if stage_of(plan, round).on_frozen_features:
        return number, rounds
    turns = METHODS[method_of(plan)].turns
    own = [turn for turn, parts in enumerate(turns) if part_of(name) in parts]

    def until(last: int) -> int:
        return sum((last - turn + len(turns) - 1) // len(turns) for turn in own)

    return until(number), until(rounds)


def falling(plan: RunPlan, round: int, final: float) -> float:
    """A factor that falls linearly over a round's stage, from 1 in the first to ``final``."""
    number, rounds = place_in_stage(plan, round)
    if rounds == 1:
        return 1.0
    return 1.0 - (1.0 - final) * (number - 1) / (rounds - 1)


def is_tested(plan: RunPlan, round: int) -> bool:
    """Whether the coordinator measures the state after a round on its test data; 0 is the start.

    Unless the plan says how often: always, but in LoRA rounds, of which there are many, about ten
    times, and not more often than after every fifth.
    """
    every, last = plan.rounds.test_every, plan.rounds.count
    if every or round in (0, last) or stage_of(plan, round) is not Stage.LORA:
        return not every or round % every == 0 or round == last
    number, rounds = place_in_stage(plan, round)
    return number % max(_LEAST_APART, math.ceil(rounds / _TESTS_IN_STAGE)) == 0


def total_steps(plan: RunPlan) -> int:
    """Runs of the privacy mechanism in the whole training at one site."""
    each = {Stage.LOCAL: plan.training.local_steps}
    return sum(rounds * each.get(stage, 1) for stage, rounds in schedule(plan))


def trained(plan: RunPlan, round: int, names: Iterable[str]) -> list[str]:
    """Which of an adapter's tensors sites train in a round, in their order."""
    stage = stage_of(plan, round)
    if stage is Stage.CLASS_SUMS:
        return [name for name in names if name == "head.weight"]
    if stage is Stage.HEAD:
        return [name for name in names if part_of(name) is Part.HEAD]
    turn = place_in_stage(plan, round)[0]
    return [name for name in names if is_trained(method_of(plan), name, turn)]


def returned(plan: RunPlan, round: int, names: Iterable[str]) -> list[str]:
    """Which of the tensors that they train sites send back, in their order."""
    found = trained(plan, round, names)
    if stage_of(plan, round).on_frozen_features:
        return found
    return [name for name in found if not is_personal(plan.aggregation.method, name)]


def sent(plan: RunPlan, round: int, names: Iterable[str]) -> list[str]:
    """Which of an adapter's tensors sites need to be sent in a round, in their order.

    A head that sites keep for themselves is sent all the same: a site's own begins as it.
    """
    if stage_of(plan, round).on_frozen_features:
        return [name for name in names if part_of(name) in (Part.HEAD, Part.CENTER)]
    method = plan.aggregation.method
    return [n for n in names if not (part_of(n) is Part.B and is_personal(method, n))]
