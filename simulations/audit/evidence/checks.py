"""Is it the mechanism that its ε was computed for? Sampling, noise, and the ledger's charges.

A lower bound sees how much canaries leak. These checks see how: batches that are not Poisson,
noise that is not N(0, σ²C²) or is used twice, steps that nobody paid for. A sound engine fails one
of them with a probability below CHANCE each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.simulations.audit.evidence.family import Family
from lorica.simulations.audit.evidence.findings import Check

CHANCE = 1e-6
"""Probability with which a check may fail a sound engine."""


def check_sampling(draws: np.ndarray, rate: float, *, most: int = 1) -> Check:
    """Whether units are drawn independently with probability ``rate`` in every step.

    Two dispersions that Poisson sampling has and others lack: of the batch sizes over steps
    (0 for batches of fixed size) and of the participations over units (0 when every unit comes
    once per epoch, as by shuffling), each against its chi-square; and the number drawn in all.

    Args:
        draws: rows that each unit brought to each step, shape (steps, units).
        rate: the claimed q.
        most: rows that a unit may bring to a step.
    """
    name = "Poisson sampling"
    if draws.max(initial=0) > most:
        detail = f"a unit brought {draws.max()} records to a step, {most} at most are allowed."
        return Check(name, False, detail)
    present = draws > 0
    steps, units = present.shape
    if rate == 1.0:
        whole = bool(present.all())
        return Check(name, whole, "every unit is in every step" if whole else "some are left out")
    spread = rate * (1 - rate)
    sizes, turns = present.sum(1), present.sum(0)
    over_steps = float(((sizes - rate * units) ** 2).sum() / (units * spread))
    over_units = float(((turns - rate * steps) ** 2).sum() / (steps * spread))
    # A binomial's square has an excess kurtosis that a chi-square's degrees of freedom can carry.
    excess = (1 - 6 * spread) / (steps * spread)
    freedom = units * 2 / (2 + excess)
    p_values = {
        "the number of units drawn": _two_sided(stats.binom(steps * units, rate), present.sum()),
        "the batch sizes' spread": _two_sided(stats.chi2(steps), over_steps),
        "how often units come": _two_sided(stats.chi2(freedom), over_units * freedom / units),
    }
    worst = min(p_values, key=lambda key: p_values[key])
    p_value = min(1.0, 3 * p_values[worst])
    passed = p_value >= CHANCE
    detail = (
        f"{steps} batches of {sizes.mean():.1f} ± {sizes.std():.1f} units, {rate * units:.1f} ± "
        f"{math.sqrt(units * spread):.1f} expected"
    )
    if not passed:
        detail += (
            f"; {worst} cannot be Poisson sampling's (p = {p_value:.1g}), so the claimed epsilon, "
            "computed for Poisson sampling, says nothing about this site."
        )
    return Check(name, passed, detail, p_value)


def check_noise(seen: np.ndarray, claimed: float) -> Check:
    """Whether noise along directions of nobody is as large as claimed, and fresh in every step.

    Args:
        seen: releases along reference directions in units of C, shape (steps, references).
        claimed: σ.
    """
    steps, references = seen.shape
    found = math.sqrt(float(np.mean(seen**2)))
    too_small = float(stats.chi2.cdf(seen.size * (found / claimed) ** 2, seen.size))
    again = _repeated(seen) if steps > 1 and references > 2 and found > 0 else 1.0
    p_value = min(1.0, 2 * min(too_small, again))
    passed = p_value >= CHANCE
    detail = f"noise multiplier {found:.4f} found, {claimed:.4f} claimed"
    if not passed:
        if too_small <= again:
            what = "the noise is too small"
        else:
            what = (
                "steps resemble each other where only noise should be: noise is used again, or "
                "records count for more than the clip norm"
            )
        detail += f"; {what} (p = {p_value:.1g})."
    return Check("noise", passed, detail, p_value)


def check_ledger(
    charged: Sequence[PrivacyEvent], family: Family, *, steps: int, claimed: float
) -> Check:
    """Whether the ledger holds at least what was seen to happen, and at most what is claimed.

    Args:
        charged: the ledger's events of the run.
        family: what the site claims to run; its noise and rate count, its steps do not.
        steps: optimizer steps that were seen.
        claimed: the claimed ε.
    """
    happened = [PrivacyEvent(family.claimed_noise, family.sample_rate, steps)]
    seen = f"{steps} steps"
    return check_charges(charged, happened, delta=family.delta, seen=seen, claimed=claimed)


def check_charges(
    charged: Sequence[PrivacyEvent],
    happened: Sequence[PrivacyEvent],
    *,
    delta: float,
    seen: str,
    claimed: float,
) -> Check:
    """The same for steps of any kind.

    Args:
        charged: the ledger's events of the run.
        happened: what was seen to happen, at the noise that is claimed.
        delta: δ at which ε is stated.
        seen: ``happened`` in words, such as "20 steps".
        claimed: the claimed ε.
    """
    paid, owed = epsilon(charged, delta), epsilon(happened, delta)
    slack = 1 + 1e-6
    passed = owed <= paid * slack and paid <= claimed * slack
    detail = f"epsilon {paid:.3f} charged, {owed:.3f} for the {seen} seen"
    if owed > paid * slack:
        detail += f"; {seen.split()[-1]} were made that nobody paid for."
    elif not passed:
        detail += f"; more than the {claimed:g} claimed."
    return Check("ledger", passed, detail)


def _repeated(seen: np.ndarray) -> float:
    """p-value of the largest correlation of noise between two steps (Fisher's z, Bonferroni)."""
    steps, references = seen.shape
    spreads = np.linalg.norm(seen, axis=1)
    if not spreads.all():
        return 0.0
    unit = seen / spreads[:, None]
    cosines = np.abs((unit @ unit.T)[np.triu_indices(steps, 1)])
    largest = math.atanh(min(float(cosines.max()), 1 - 1e-12))
    return min(1.0, 2 * len(cosines) * float(stats.norm.sf(largest * math.sqrt(references - 2))))


def _two_sided(distribution: object, value: float) -> float:
    low, high = distribution.cdf(value), distribution.sf(value)  # type: ignore[attr-defined]
    return float(min(1.0, 2 * min(low, high)))
