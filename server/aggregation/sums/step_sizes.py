"""How far the coordinator goes along a round's gradient (training.mode "gradient")."""

from __future__ import annotations

import math
from collections.abc import Collection

from lorica.common.adapter.layer_rates import layer_factors
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import (
    Stage,
    clip_share,
    falling,
    place_of_tensor,
    schedule,
    stage_of,
)
from lorica.common.plan.tensors import Part, part_of
from lorica.common.plan.traits import TRAITS
from lorica.common.privacy.of_plan import public_privacy
from lorica.common.tasks.text_classification import BIAS_INPUT

_FEWEST = 30  # rounds of a stage, as far as the head's steps are concerned
_LORA_ROUNDS, _MOST_LORA = 100, 2.0
_QUIET, _MOST_QUIET = 3.0, 4.0  # times the rate of LoRA factors without noise, after head rounds
_COLD = 2.0  # times the rate of LoRA factors where no head is there to be undone
_COLD_HEAD = 5.0  # where there is one that begins at random, and no noise
_COLD_HEAD_PRIVATE = 4.0  # the same with noise: PerWeightAdam.length goes with the signal
_MOST_COLD = 6.0  # times the rate of 100 rounds after head rounds: 10 times it was too far


def step_size(plan: RunPlan, round: int, name: str, names: Collection[str]) -> float:
    """η of one tensor in a round, in units of its weights where u has the length of its values.

    The head's is rate / √(rounds of the stage that train the tensor), falling linearly over the
    stage to ``server.final_rate``. With optimiser "adam" the noise alone then moves every weight by
    about the rate over the stage (a random walk of T steps of rate / √T), whatever ε, the number of
    rounds, records and sites. A stage of fewer than ``_FEWEST`` rounds that follows another has the
    steps of so many: one step as long as a whole walk would undo what came before.

    The head's rate in its own rounds is ``head_rate``. In LoRA rounds it goes on from there: with
    privacy by :func:`weight_of_lora_rounds` times the step of its own rounds, without (or without
    such rounds) by ``warm_rate``; where nothing comes before, by ``cold_rate``, for
    Adam of each weight.

    LoRA factors have a rate a round, for Adam of each weight: √(100 / T) times
    ``server.lora_rate`` in T rounds, at most twice as much, rising in the first
    ``server.lora_warm_up`` of them; without privacy ``_QUIET`` times that, at most ``_MOST_QUIET``
    times ``server.lora_rate``. Where LoRA rounds are a run's first, there is no trained head that a
    large step could undo: all are ``_COLD`` times as large, without privacy ``_COLD_HEAD`` times in
    tasks with a head, with it ``_COLD_HEAD_PRIVATE`` times where that begins at random (entities),
    but no more than ``_MOST_COLD`` times in few rounds.

    Args:
        plan: the run.
        round: its number.
        name: a tensor that the round trains.
        names: all of the adapter's tensors.
    """
    server, fall = plan.server, falling(plan, round, plan.server.final_rate)
    number, rounds = place_of_tensor(plan, round, name)
    if part_of(name) is not Part.HEAD:
        rate = server.lora_rate * layer_factors(names, plan.training.layer_decay)[name]
        few = min(_MOST_LORA, math.sqrt(_LORA_ROUNDS / rounds))
        rise = min(1.0, number / (1.0 + math.floor(server.lora_warm_up * rounds)))
        cold = not number_of_stage(plan, round)
        most = _MOST_COLD if cold or plan.privacy.private else _MOST_QUIET
        return rate * min(few * _longer(plan, cold=cold), most) * rise * fall
    rate = server.head_rate
    if stage_of(plan, round) is Stage.LORA:
        weight, own = weight_of_lora_rounds(plan), dict(schedule(plan)).get(Stage.HEAD, 0)
        if weight:
            rate *= weight * math.sqrt(rounds / own)
        else:
            rate = server.warm_rate if number_of_stage(plan, round) else server.cold_rate
    if name == "head.bias":
        rate *= BIAS_INPUT  # the step is that of b / BIAS_INPUT
    follows = number_of_stage(plan, round) > 0
    return rate / math.sqrt(max(rounds, _FEWEST) if follows else rounds) * fall


def _longer(plan: RunPlan, *, cold: bool) -> float:
    """The factor of LoRA rounds; ``cold``: they are a run's first."""
    traits = TRAITS[plan.task.kind]
    if plan.privacy.private:  # PerWeightAdam.length makes cold ones up to three times as long
        random_head = traits.head and not traits.head_first
        return (_COLD_HEAD_PRIVATE if random_head else _COLD) if cold else 1.0
    if not cold:
        return _QUIET
    return _COLD_HEAD if traits.head else _COLD


def number_of_stage(plan: RunPlan, round: int) -> int:
    """How many stages come before a round's."""
    return [stage for stage, _ in schedule(plan)].index(stage_of(plan, round))


def weight_of_lora_rounds(plan: RunPlan) -> float:
    """What a head's gradient of a LoRA round counts for, against one of a head round.

    A round's release for the head is G = q s g + σ C z: sample rate q, s C what a unit's gradient
    of the head is clipped to, g about the same in all rounds, z standard normal. Steps η_t u_t
    along many of them move the head by drift and by a random walk; of all η_t, the ratio of the
    two is largest where every η_t u_t is G_t times a constant · q_t s_t / σ_t² (Cauchy-Schwarz;
    weights by the inverse variance). "adam" has divided by about σ, so that η_t ∝ q_t s_t / σ_t;
    "momentum" by a constant, so that η_t ∝ q_t s_t / σ_t².

    Returns:
        that weight over the one of a head round; 0 without privacy or without head rounds.
    """
    rounds = dict(public_privacy(plan).stages)
    head, lora = rounds.get(Stage.HEAD), rounds.get(Stage.LORA)
    if head is None or lora is None or not plan.privacy.private:
        return 0.0
    weight = math.sqrt(1.0 - clip_share(plan)) * lora.sample_rate / head.sample_rate
    noise = lora.noise_multiplier / head.noise_multiplier
    return weight / (noise**2 if plan.server.optimizer == "momentum" else noise)
