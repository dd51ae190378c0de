"""The noise a site must add under a plan, from public figures alone."""

from __future__ import annotations

import math

from lorica.common.accounting import PrivacyEvent, calibrate_noise
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan


def round_event(plan: RunPlan, declared_records: int) -> PrivacyEvent:
    """What one round of local training does at a site.

    q = expected_batch_size / declared records, and σ is the smallest noise multiplier that keeps
    *all* steps of the run within (ε, δ). Both are functions of the plan and of the declared
    number of records, which is public, so neither reveals anything about the records.

    Raises:
        LoricaError: LOR-308 fewer records than the expected batch, LOR-402 δ too large, LOR-406.
    """
    if declared_records < plan.training.expected_batch_size:
        raise LoricaError(
            Code.DATA_TOO_FEW_RECORDS,
            f"The site has {declared_records} records, but training.expected_batch_size is "
            f"{plan.training.expected_batch_size}.",
        )
    if plan.privacy.private and plan.privacy.delta * declared_records >= 1:
        raise LoricaError(
            Code.PRIVACY_DELTA,
            f"privacy.delta is {plan.privacy.delta:g}, but with {declared_records} records it must "
            f"be below {1 / declared_records:.3g}.",
        )
    rate = plan.training.expected_batch_size / declared_records
    sigma = 0.0
    if math.isfinite(plan.privacy.epsilon):
        sigma = calibrate_noise(plan.privacy.epsilon, plan.privacy.delta, rate, plan.total_steps)
    return PrivacyEvent(sigma, rate, plan.training.local_steps)
