"""The noise a site must add under a plan, from public figures alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import Stage, schedule, stage_of
from lorica.common.privacy.accountant import calibrate_noise
from lorica.common.privacy.calibration import Part, noise_beside, share_budget
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.shared_noise import accounted

_BEFORE_LORA = 0.125
"""What of rounds.warm_start is left to the class sums of a run whose LoRA rounds stand above the
noise: its sums do so by far, and LoRA rounds need the budget more."""


_MOST_KNOWN = 4096
_KNOWN: dict[tuple[str, float | None], RunPrivacy] = {}
"""What was worked out in this process, by the plan's fingerprint and q of local steps."""


@dataclass(frozen=True)
class RunPrivacy:
    """What a run costs at one site.

    Formal guarantee:
        All rounds of all stages and all evaluations, and the bit about the site's guard if the plan
        asks for one, together are (ε, δ)-DP for the plan's ε and δ: the bit's ε is taken off the
        plan's, and the rest is calibrated to what is left. Which share each stage has is the
        plan's choice. The noise multipliers are calibrated jointly
        (:mod:`lorica.common.privacy.calibration`). With ``privacy.trust`` "sum" they are those
        against an observer of sums for whom the noise of ``privacy.honest_sites`` sites is left
        (:mod:`lorica.common.privacy.shared_noise`).
    """

    plan: RunPlan
    stages: tuple[tuple[Stage, PrivacyEvent], ...]
    """One round of every stage."""
    evaluation: PrivacyEvent | None
    """One evaluation: the Gaussian mechanism over all units set aside (q = 1)."""
    benefit: PrivacyEvent | None = None
    """The bit about the site's guard (:mod:`lorica.client.benefit.told`)."""

    def of_round(self, round: int) -> PrivacyEvent:
        """What training in a round costs."""
        return dict(self.stages)[stage_of(self.plan, round)]

    @property
    def training(self) -> PrivacyEvent:
        """One round of the stage that has most of the rounds."""
        longest = max(schedule(self.plan), key=lambda part: part[1])[0]
        return dict(self.stages)[longest]

    @cached_property
    def whole(self) -> tuple[PrivacyEvent, ...]:
        """All that the run does."""
        evaluations = len(self.plan.evaluation_rounds)
        return tuple(self.events(self.plan.rounds.count, evaluations, benefit=True))

    def events(
        self, rounds: int | Collection[int], evaluations: int, *, benefit: bool = False
    ) -> list[PrivacyEvent]:
        """All that these rounds (or the first so many) and so many evaluations do, and the bit
        about the guard if it was asked for (``benefit``)."""
        found = [event for _, event in self.events_by_stage(rounds)]
        if self.evaluation and evaluations:
            found.append(PrivacyEvent(self.evaluation.noise_multiplier, 1.0, evaluations))
        if self.benefit and benefit:
            found.append(self.benefit)
        return found

    def events_by_stage(self, rounds: int | Collection[int]) -> list[tuple[Stage, PrivacyEvent]]:
        """What these rounds (or the first so many) do, one event for each stage among them."""
        numbers = range(1, rounds + 1) if isinstance(rounds, int) else rounds
        done = Counter(stage_of(self.plan, number) for number in numbers)
        return [
            (stage, PrivacyEvent(one.noise_multiplier, one.sample_rate, one.steps * done[stage]))
            for stage, one in self.stages
            if done[stage]
        ]


def run_privacy(plan: RunPlan, units: int) -> RunPrivacy:
    """What a run costs at a site.

    In mode "gradient" the noise depends on the plan alone, and is the same at every site. In
    mode "local" the sample rate is q = expected_batch_size / units (of those not set aside), so
    that a site that fixes ``units`` by hand reveals nothing about its records by q or σ.

    Args:
        plan: the run.
        units: the site's figure for its number of units.

    Raises:
        LoricaError: LOR-308 fewer units than the expected batch, LOR-402 δ too large, LOR-406.
    """
    privacy = plan.privacy
    what = "records" if privacy.unit == "record" else f"units ({privacy.unit})"
    trained = units * (1.0 - plan.data.validation) if plan.evaluation_rounds else float(units)
    local = plan.training.mode == "local"
    if local and trained < plan.training.expected_batch_size:
        aside = f" ({trained:.0f} of them for training)" if plan.evaluation_rounds else ""
        raise LoricaError(
            Code.DATA_TOO_FEW_RECORDS,
            f"The site has {units} {what}{aside}, but training.expected_batch_size is "
            f"{plan.training.expected_batch_size}.",
        )
    if privacy.private and privacy.delta * units >= 1:
        raise LoricaError(
            Code.PRIVACY_DELTA,
            f"privacy.delta is {privacy.delta:g}, but with {units} {what} it must be below "
            f"{1 / units:.3g}.",
        )
    return _calibrated(plan, plan.training.expected_batch_size / trained if local else 1.0)


def public_privacy(plan: RunPlan) -> RunPrivacy:
    """What of :func:`run_privacy` depends on the plan alone and is the same at every site: all of
    it in mode "gradient", all but the local steps in mode "local".

    Raises:
        LoricaError: LOR-406 when no noise meets the plan's budget.
    """
    return _calibrated(plan, None)


def _calibrated(plan: RunPlan, local_rate: float | None) -> RunPrivacy:
    """The noise of all stages; ``local_rate`` is q of local steps, None to leave them out. Worked
    out once: every site and every round of a run asks for the same."""
    key = plan.fingerprint, local_rate
    found = _KNOWN.get(key)
    if found is None:
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        found = _KNOWN[key] = _worked_out(plan, local_rate)
    return found


def _worked_out(plan: RunPlan, local_rate: float | None) -> RunPrivacy:
    sigmas = _jointly(plan) if plan.training.mode == "gradient" else _apart(plan, local_rate)
    rates = _rates(plan) | {Stage.LOCAL: local_rate or 0.0}
    steps = {Stage.LOCAL: plan.training.local_steps}
    events = [
        (stage, PrivacyEvent(sigmas[stage], rates[stage], steps.get(stage, 1)))
        for stage, _ in schedule(plan)
        if stage in sigmas
    ]
    evaluation = PrivacyEvent(sigmas[None], 1.0, 1) if None in sigmas else None
    bit = plan.privacy.benefit_epsilon
    benefit = PrivacyEvent.of_response(bit) if bit else None
    return RunPrivacy(plan, tuple(events), evaluation, benefit)


def _budget(plan: RunPlan) -> tuple[float, float]:
    """ε and δ of all but the bit about the guard."""
    return plan.privacy.epsilon - plan.privacy.benefit_epsilon, plan.privacy.delta


def _jointly(plan: RunPlan) -> dict[Stage | None, float]:
    """σ of every stage and of evaluation (None) where all figures are public: composed as one."""
    rates, shares = _rates(plan), _shares(plan)
    parts: dict[Stage | None, Part] = {
        stage: Part(rates[stage], rounds, shares[stage]) for stage, rounds in schedule(plan)
    }
    if plan.evaluation_rounds:
        parts[None] = Part(1.0, len(plan.evaluation_rounds), shares[None])
    budget = _budget(plan)
    if plan.sealed:
        budget = accounted(*budget)
    return dict(zip(parts, share_budget(*budget, list(parts.values())), strict=True))


def _apart(plan: RunPlan, local_rate: float | None) -> dict[Stage | None, float]:
    """The same in mode "local", whose steps have a q of the site's own: the others' σ follow from
    their shares alone, and the steps' σ is what the budget then leaves them."""
    (epsilon, delta), shares = _budget(plan), _shares(plan)
    runs: dict[Stage | None, int] = dict(schedule(plan))
    local = runs.pop(Stage.LOCAL, 0) * plan.training.local_steps
    if plan.evaluation_rounds:
        runs[None] = len(plan.evaluation_rounds)
    one = calibrate_noise(epsilon, delta, 1.0, 1) if runs else 0.0
    found = {part: one * math.sqrt(times / shares[part]) for part, times in runs.items()}
    if local and local_rate is not None:
        fixed = [PrivacyEvent(found[part], 1.0, times) for part, times in runs.items()]
        found[Stage.LOCAL] = noise_beside(epsilon, delta, fixed, local_rate, local)
    return found


def _rates(plan: RunPlan) -> dict[Stage | None, float]:
    """q of every stage that the plan alone decides."""
    return {
        Stage.CLASS_SUMS: 1.0,
        Stage.HEAD: plan.training.sample_rate,
        Stage.LORA: plan.lora_sample_rate,
    }


def _shares(plan: RunPlan) -> dict[Stage | None, float]:
    """Every stage's share of the budget, and that of evaluation (None); they sum to 1."""
    present = [stage for stage, _ in schedule(plan)]
    shares: dict[Stage | None, float] = {}
    left = 1.0
    if plan.evaluation_rounds:
        shares[None] = plan.privacy.evaluation_share
        left -= shares[None]
    if Stage.CLASS_SUMS in present and len(present) > 1:
        before_lora = _BEFORE_LORA if Stage.LORA in present else 1.0
        shares[Stage.CLASS_SUMS] = left * plan.rounds.warm_start * before_lora
        left -= shares[Stage.CLASS_SUMS]
    if Stage.HEAD in present and Stage.LORA in present:
        shares[Stage.LORA] = left * plan.rounds.lora_share
        left -= shares[Stage.LORA]
    return shares | {stage: left for stage in present if stage not in shares}
