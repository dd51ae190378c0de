"""The noise a site must add under a plan, from public figures alone."""

from __future__ import annotations

from dataclasses import dataclass

from lorica.common.accounting import PrivacyEvent, calibrate_noise
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan


@dataclass(frozen=True)
class RunPrivacy:
    """What a run costs at one site, split into training and evaluation.

    Formal guarantee:
        Training of all rounds is (ε_t, δ_t)-DP and all evaluations together are (ε_e, δ_e)-DP,
        with ε_t + ε_e = ε and δ_t + δ_e = δ, so by basic composition the run is (ε, δ)-DP. A run
        without evaluation at sites spends all on training.
    """

    training: PrivacyEvent
    """One round of local training."""
    evaluation: PrivacyEvent | None
    """One evaluation: the Gaussian mechanism over all units set aside (q = 1)."""

    def events(self, training_rounds: int, evaluations: int) -> list[PrivacyEvent]:
        """All that so many rounds and evaluations do."""
        event = self.training
        steps = event.steps * training_rounds
        found = [PrivacyEvent(event.noise_multiplier, event.sample_rate, steps)]
        if self.evaluation and evaluations:
            found.append(PrivacyEvent(self.evaluation.noise_multiplier, 1.0, evaluations))
        return found


def run_privacy(plan: RunPlan, units: int) -> RunPrivacy:
    """What a run costs at a site.

    The sample rate is q = expected_batch_size / units (of those not set aside), and σ is the
    smallest noise multiplier that keeps *all* steps of the run within the share of (ε, δ) that
    training has. Both are functions of the plan and of ``units``, so a site that fixes ``units``
    by hand reveals nothing about its records by either.

    Args:
        plan: the run.
        units: the site's figure for its number of units.

    Raises:
        LoricaError: LOR-308 fewer units than the expected batch, LOR-402 δ too large, LOR-406.
    """
    privacy, evaluations = plan.privacy, len(plan.evaluation_rounds)
    share = privacy.evaluation_share if evaluations else 0.0
    trained = units * (1.0 - plan.data.validation) if evaluations else float(units)
    what = "records" if privacy.unit == "record" else f"units ({privacy.unit})"
    if trained < plan.training.expected_batch_size:
        aside = f" ({trained:.0f} of them for training)" if evaluations else ""
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
    rate = plan.training.expected_batch_size / trained
    sigma = 0.0
    if privacy.private:
        kept = 1.0 - share
        budget = kept * privacy.epsilon, kept * privacy.delta
        sigma = calibrate_noise(*budget, rate, plan.total_steps)
    training = PrivacyEvent(sigma, rate, plan.training.local_steps)
    return RunPrivacy(training, evaluation_event(plan))


def evaluation_event(plan: RunPlan) -> PrivacyEvent | None:
    """One evaluation at any site: it depends on the plan alone. None when there is none."""
    privacy, evaluations = plan.privacy, len(plan.evaluation_rounds)
    if not evaluations:
        return None
    sigma = 0.0
    if privacy.private:
        share = privacy.evaluation_share
        sigma = calibrate_noise(share * privacy.epsilon, share * privacy.delta, 1.0, evaluations)
    return PrivacyEvent(sigma, 1.0, 1)


def round_event(plan: RunPlan, units: int) -> PrivacyEvent:
    """The training part of :func:`run_privacy`."""
    return run_privacy(plan, units).training
