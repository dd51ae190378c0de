"""The integer grid: sensitivity, noise and headroom, as its proof states them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.errors import Code, LoricaError
from lorica.common.secure_sum.grid import MOST_UNITS, grid
from lorica.common.secure_sum.masks import add_mask, centred, pack, unpack


@settings(deadline=None, max_examples=60)
@given(
    values=st.integers(1, 300),
    bound=st.floats(1e-6, 1e6),
    size=st.floats(0, 1e4),
    seed=st.integers(0, 2**32),
)
def test_one_unit_moves_the_integers_by_at_most_the_sensitivity(
    values: int, bound: float, size: float, seed: int
) -> None:
    found = grid(values, bound, 4.0, honest=3, sites=4)
    drawn = np.random.default_rng(seed)
    total, unit = drawn.normal(size=values) * size * bound, drawn.normal(size=values)
    unit *= bound / np.linalg.norm(unit)
    moved = found.integers(total + unit) - found.integers(total)
    assert np.linalg.norm(moved.astype(float)) <= found.sensitivity


@pytest.mark.parametrize("sigma", [0.2, 5.0, 300.0, 65536.0])
@pytest.mark.parametrize(("honest", "sites"), [(2, 3), (9, 10), (900, 1000)])
def test_h_sites_have_the_noise_and_rounding_costs_little(
    sigma: float, honest: int, sites: int
) -> None:
    found = grid(30_000, 0.35, sigma, honest=honest, sites=sites)
    assert honest * found.variance >= (sigma * found.sensitivity) ** 2
    promised = sigma * found.bound / found.step
    extra = math.sqrt(honest * found.variance) / promised - 1
    assert 0 <= extra < (0.0011 if sigma <= 300 else 0.15)
    # Headroom: the largest sums there can be stay below half the modulus.
    most = sites * (MOST_UNITS * found.bound / found.step + 1 + 15 * math.sqrt(found.variance))
    assert most < 2 ** (found.bits - 1)
    assert math.log2(found.step) == int(math.log2(found.step))


def test_the_largest_sums_come_through_the_modulus_unharmed() -> None:
    found = grid(4, 1.0, 10.0, honest=3, sites=5)
    far = np.array([1e30, -1e30, MOST_UNITS, -0.25])
    integers = found.integers(far)
    noise = np.array([1, -1, 1, -1]) * int(15 * math.sqrt(found.variance))
    total = np.zeros(4, dtype=np.uint64)
    for _ in range(5):
        total += (integers + noise).view(np.uint64)
    total = unpack(pack(total, found.bits), 4, found.bits)
    assert (centred(total, found.bits) == 5 * (integers + noise)).all()
    assert found.reals(integers).tolist() == [MOST_UNITS, -MOST_UNITS, MOST_UNITS, -0.25]


def test_a_sum_that_is_not_finite_or_of_another_length_is_refused() -> None:
    found = grid(2, 1.0, 1.0, honest=2, sites=2)
    for bad in ([np.nan, 0], [np.inf, 0], [0, 0, 0], [[0, 0]]):
        with pytest.raises(ValueError, match="sealed"):
            found.integers(np.array(bad, dtype=np.float64))


def test_more_noise_than_64_bits_hold_is_refused() -> None:
    with pytest.raises(LoricaError) as caught:
        grid(10**6, 1.0, 1e18, honest=2, sites=10_000)
    assert caught.value.code is Code.PRIVACY_CALIBRATION


def test_a_mask_is_taken_away_by_itself_and_keys_differ() -> None:
    vector = np.arange(200_000, dtype=np.uint64)
    masked = vector.copy()
    add_mask(masked, b"k" * 32, +1)
    other = vector.copy()
    add_mask(other, b"l" * 32, +1)
    assert (masked != vector).mean() > 0.999 and (masked != other).mean() > 0.999
    add_mask(masked, b"k" * 32, -1)
    assert (masked == vector).all()
    short = vector[:7].copy()
    add_mask(short, b"k" * 32, +1)
    long = vector.copy()
    add_mask(long, b"k" * 32, +1)
    assert (short == long[:7]).all()


@pytest.mark.parametrize("bits", [8, 40, 48, 64])
def test_packing_is_reduction_modulo_the_power_of_two(bits: int) -> None:
    drawn = np.random.default_rng(1).integers(0, 2**64, 50, dtype=np.uint64)
    content = pack(drawn, bits)
    assert len(content) == 50 * bits // 8
    assert [int(v) for v in unpack(content, 50, bits)] == [int(v) % 2**bits for v in drawn]
    for wrong in (content[:-1], content + b"x"):
        with pytest.raises(ValueError, match="expected"):
            unpack(wrong, 50, bits)
