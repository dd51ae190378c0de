"""Whether a run trains LoRA factors, in how many rounds, and who judges what they came to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from lorica.common.plan.course import RoundsPlan, TrainingPlan
from lorica.common.plan.subject import AdapterPlan, DataPlan, PrivacyPlan, TaskPlan
from lorica.common.plan.traits import TRAITS, SiteMetric, TaskKind

MOST_OF_RUN = 0.6
"""Share of all rounds that training.lora "auto" gives to LoRA at most, where head rounds come
first."""

LEAST_ROUNDS, LEAST_NOISED_ROUNDS = 6, 20
"""LoRA rounds, of a run that could do with more, from which "auto" trains any where head rounds do
without. SST-2 without privacy gains 1.7 points over the head alone by 6 of 10 rounds, nothing by 3
of 5, and loses 2.6 by 1 of 2. At ε = 8 one holder gains 1.8 by 26 of 43 and 0.8 by 6 of 10, loses
0.6 by 3 of 5 and 4.0 by 1 of 2; four sites with noise of their own lose 1.5, 3.2 and 7.1 by 6 of
10, 3 of 5 and 1 of 2, and lose nothing by 60 of 100."""

LEAST_SIGNAL = 4000.0
"""Units of privacy times μ (below) over the square root of the sites, from which LoRA gains by
more than noise costs it. One gain was measured, SST-2 with one holder of 6,920 records at ε = 8
(10,000); the bound itself is a judgement between that and ten sites there (3,160), not a fit.
Entities are not asked for it: 5,424 sentences of one holder at ε = 8 (7,860) reach F1 0.57 in the
reference, where a head alone has 0.11 without privacy; how little signal still gains there was not
measured."""

LEAST_SIGNAL_OF_LABEL = 1000.0
"""The same over the number of labels: with less, the head itself is short of signal, and the share
of the budget that LoRA rounds take costs more than they bring. A judgement, not a fit."""


class Deciding(Protocol):
    """What of a :class:`~lorica.common.plan.run.RunPlan` decides."""

    @property
    def task(self) -> TaskPlan: ...
    @property
    def adapter(self) -> AdapterPlan: ...
    @property
    def data(self) -> DataPlan: ...
    @property
    def privacy(self) -> PrivacyPlan: ...
    @property
    def training(self) -> TrainingPlan: ...
    @property
    def rounds(self) -> RoundsPlan: ...
    @property
    def honest_sites(self) -> int: ...
    @property
    def warm_rounds(self) -> int: ...
    @property
    def lora_rounds(self) -> int: ...


@dataclass(frozen=True)
class LoraDecision:
    """What a plan comes to."""

    rounds: int
    """LoRA rounds, the last of the run; 0: none."""
    why: str
    """In half a sentence, for people."""


def decide(plan: Deciding) -> LoraDecision:
    """How many of a plan's rounds train LoRA factors (or biases), from public figures alone."""
    training, traits = plan.training, TRAITS[plan.task.kind]
    if training.mode == "local":
        return LoraDecision(0, "local steps train all of the adapter in every round")
    if not traits.head:
        return LoraDecision(
            plan.rounds.count, "the task has no head: LoRA is all there is to train"
        )
    if plan.adapter.kind == "head":
        return LoraDecision(0, 'adapter.kind is "head"')
    if training.lora == "never":
        return LoraDecision(0, 'training.lora is "never"')
    if training.lora == "always":
        return LoraDecision(_most(plan, 1.0), 'training.lora is "always"')
    rounds, unless = _most(plan, MOST_OF_RUN), 'training.lora "always" insists'
    if not traits.head_first:
        return LoraDecision(rounds, "the task needs more than a head on features as they came")
    least = LEAST_NOISED_ROUNDS if plan.privacy.private else LEAST_ROUNDS
    if rounds < min(least, training.lora_rounds):
        return LoraDecision(
            0, f"{plan.rounds.count} rounds are too few for LoRA to gain by ({unless})"
        )
    if not plan.privacy.private:
        return LoraDecision(rounds, "there is no noise")
    if plan.rounds.expected_units:
        signal = signal_of(plan)
        if signal < LEAST_SIGNAL:
            return LoraDecision(
                0,
                f"noise would drown it: {signal:,.0f} of the {LEAST_SIGNAL:,.0f} units' worth of "
                f"signal that it takes ({unless})",
            )
        own = signal / max(1, len(plan.task.labels))
        if own < LEAST_SIGNAL_OF_LABEL:
            return LoraDecision(
                0,
                f"the head needs the budget: {own:,.0f} of {LEAST_SIGNAL_OF_LABEL:,.0f} units' "
                f"worth of signal for a label ({unless})",
            )
        return LoraDecision(
            rounds, f"its signal stands above the noise ({signal:,.0f} units' worth)"
        )
    if plan.rounds.evaluate_every or plan.data.judge:
        return LoraDecision(rounds, "its rounds are judged, and kept only if they gain")
    return LoraDecision(
        0,
        "nothing tells whether it would gain: name rounds.expected_units, have sites evaluate "
        f"(rounds.evaluate_every) or name data.judge ({unless})",
    )


def lora_sentence(plan: Deciding) -> str:
    """What a plan decides, in a sentence; empty where there is nothing to decide."""
    found, part = decide(plan), "LoRA factors" if plan.adapter.kind != "bitfit" else "biases"
    if plan.training.mode == "local" or plan.adapter.kind == "head":
        return ""
    if not found.rounds:
        return f"No round trains {part}: {found.why}."
    whose = "the coordinator's validation data" if plan.data.judge else "the sites' noised counts"
    judged = f"; {whose} judge which state is kept" if judged_after(plan) else ""
    return f"{found.rounds} of {plan.rounds.count} rounds train {part}: {found.why}{judged}."


def signal_of(plan: Deciding) -> float:
    """How many units' gradients, pointing one way, the run's noise leaves visible: n·μ/√K.

    n units at K sites, each with noise of its own, or K / h times that of one site where h of them
    share it (privacy.trust "sum"); μ is about that of the Gaussian mechanism which
    has the plan's (ε, δ), by the tail bound: μ = √(2 (ln 1/δ + ε)) - √(2 ln 1/δ). In all rounds
    together a sum over n units has then n·μ/√K times the noise of one of its coordinates.
    """
    tail = -math.log(plan.privacy.delta)
    mu = math.sqrt(2 * (tail + plan.privacy.epsilon)) - math.sqrt(2 * tail)
    sites = (plan.rounds.expected_sites or plan.rounds.minimum_sites) / plan.honest_sites
    return plan.rounds.expected_units * mu / math.sqrt(sites)


def judged_after(plan: Deciding) -> list[int]:
    """The rounds whose states are held against each other: before, amid and after LoRA rounds."""
    if plan.training.lora != "auto" or plan.training.mode == "local":
        return []
    lora, last = plan.lora_rounds, plan.rounds.count
    if not lora or not (plan.data.judge or plan.rounds.evaluate_every or can_tell(plan)):
        return []
    before = last - lora
    amid = {before + math.ceil(part * lora / 3) for part in (1, 2)}
    return sorted(({before} if before else set()) | amid | {last})


def can_tell(plan: Deciding) -> bool:
    """Whether what sites count tells good states from bad."""
    return not set(telling(plan.task.kind)).isdisjoint(plan.privacy.evaluation_metrics)


def telling(kind: TaskKind) -> list[SiteMetric]:
    """The site metrics that tell good states from bad, best first."""
    traits = TRAITS[kind]
    others: list[SiteMetric] = ["accuracy", "loss"]
    found = [*traits.headline_from, *(name for name in others if name in traits.site_metrics)]
    return list(dict.fromkeys(found))


def _most(plan: Deciding, share: float) -> int:
    """LoRA rounds where they have at most this share of the run."""
    left = plan.rounds.count - plan.warm_rounds
    if not TRAITS[plan.task.kind].head_first:
        return left
    return max(0, min(plan.training.lora_rounds, left, math.ceil(share * plan.rounds.count)))
