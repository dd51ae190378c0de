"""The audit's checks: sound sampling, noise and charges pass, each known fault fails."""

from __future__ import annotations

import numpy as np
import pytest

from lorica.common.privacy.accountant import calibrate_noise
from lorica.common.privacy.event import PrivacyEvent
from lorica.simulations.audit.evidence.checks import check_ledger, check_noise, check_sampling
from lorica.simulations.audit.evidence.family import Family

UNITS, STEPS = 400, 20


def poisson(rate: float, generator: np.random.Generator) -> np.ndarray:
    return (generator.random((STEPS, UNITS)) < rate).astype(np.int64)


def shuffled(rate: float, generator: np.random.Generator) -> np.ndarray:
    """Every unit once per epoch, in batches of one size."""
    size, order = round(rate * UNITS), np.empty(0, dtype=int)
    draws = np.zeros((STEPS, UNITS), dtype=np.int64)
    for step in range(STEPS):
        if len(order) < size:
            order = generator.permutation(UNITS)
        draws[step, order[:size]] = 1
        order = order[size:]
    return draws


def fixed_size(rate: float, generator: np.random.Generator) -> np.ndarray:
    """Batches of one size, drawn anew."""
    keys = generator.random((STEPS, UNITS)).argsort(axis=1)
    return (keys < round(rate * UNITS)).astype(np.int64)


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9, 1.0])
def test_poisson_sampling_passes(rate: float) -> None:
    generator = np.random.default_rng(0)
    assert all(check_sampling(poisson(rate, generator), rate).passed for _ in range(200))


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
def test_p_values_of_poisson_sampling_are_not_too_small_too_often(rate: float) -> None:
    generator = np.random.default_rng(1)
    checks = [check_sampling(poisson(rate, generator), rate) for _ in range(300)]
    assert np.mean([(check.p_value or 0.0) < 0.05 for check in checks]) < 0.12


@pytest.mark.parametrize("sampler", [shuffled, fixed_size])
@pytest.mark.parametrize("rate", [0.05, 0.25])
def test_batches_of_fixed_size_fail(sampler: object, rate: float) -> None:
    draws = sampler(rate, np.random.default_rng(2))  # type: ignore[operator]
    assert not check_sampling(draws, rate).passed


def test_another_rate_fails() -> None:
    assert not check_sampling(poisson(0.4, np.random.default_rng(3)), 0.3).passed


def test_a_unit_with_more_records_than_allowed_fails() -> None:
    draws = poisson(0.3, np.random.default_rng(6))
    draws[2, 7] = 2
    assert not check_sampling(draws, 0.3).passed
    assert check_sampling(draws, 0.3, most=2).passed


def test_a_unit_left_out_of_full_batches_fails() -> None:
    draws = np.ones((STEPS, UNITS), dtype=np.int64)
    draws[3, 5] = 0
    assert not check_sampling(draws, 1.0).passed


@pytest.mark.parametrize(
    ("share", "passes"), [(1.0, True), (1.1, True), (0.93, False), (0.5, False), (0.0, False)]
)
def test_noise_below_the_claim_fails(share: float, passes: bool) -> None:
    seen = share * 1.5 * np.random.default_rng(4).standard_normal((STEPS, 400))
    assert check_noise(seen, 1.5).passed == passes


def test_noise_used_twice_fails() -> None:
    seen = np.random.default_rng(5).standard_normal((STEPS, 200))
    assert check_noise(seen, 1.0).passed
    seen[7] = seen[3]
    assert not check_noise(seen, 1.0).passed


def test_ledger_must_hold_what_was_seen_and_no_more_than_is_claimed() -> None:
    family = Family(0.2, 20, 1e-5, calibrate_noise(4.0, 1e-5, 0.2, 20))
    event = PrivacyEvent(family.claimed_noise, 0.2, 5)

    def passes(charges: list[PrivacyEvent], steps: int, claimed: float = 4.0) -> bool:
        return check_ledger(charges, family, steps=steps, claimed=claimed).passed

    assert passes([event] * 4, 20)
    assert passes([event] * 4, 15)  # charged and then interrupted: overcounting is allowed
    assert not passes([], 20)
    assert not passes([event] * 3, 20)
    assert not passes([PrivacyEvent(2 * family.claimed_noise, 0.2, 20)], 20)
    assert not passes([event] * 4, 20, claimed=3.0)
