"""A site's share of the noise in a sealed sum: its integers, its size, what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lorica.client.mechanism.noise import SecureNoise, SeededNoise
from lorica.client.secure_sum.grid_noise import GridNoise
from lorica.common.secure_sum.grid import grid


def test_h_sites_together_have_the_promised_noise_and_the_exact_sum() -> None:
    values, sigma, bound, honest = 20_000, 3.0, 0.5, 4
    shape = grid(values, bound, sigma, honest=honest, sites=6)
    total, summed = torch.linspace(-5, 5, values, dtype=torch.float64), np.zeros(values)
    for site in range(honest):
        noise = GridNoise(SeededNoise("test", site), shape)
        noise.add_noise(total[: values // 2], sigma * bound)
        assert not noise.whole
        noise.add_noise(total[values // 2 :], sigma * bound)
        assert noise.whole
        summed += torch.cat(noise.released).numpy() * shape.step
    off = summed - honest * total.numpy()
    assert abs(off.std() / (sigma * bound) - 1) < 6 / math.sqrt(2 * values)
    assert abs(off.mean()) < 6 * sigma * bound / math.sqrt(values)


def test_without_noise_a_release_is_the_total_to_half_a_step() -> None:
    shape = grid(50, 1.0, 0.0, honest=2, sites=2)
    noise = GridNoise(SecureNoise(), shape)
    total = torch.randn(5, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    back = noise.add_noise(total, 0.0)
    assert (noise.released[0].double() * shape.step - total).abs().max() <= shape.step / 2
    assert back.shape == total.shape and back.dtype == torch.float32


@pytest.mark.parametrize("std", [0.0, 1.4, 1.6])
def test_other_noise_than_the_grids_is_refused(std: float) -> None:
    noise = GridNoise(SecureNoise(), grid(3, 0.5, 3.0, honest=2, sites=2))
    with pytest.raises(ValueError, match="noise"):
        noise.add_noise(torch.zeros(3), std)
    assert noise.released == []


@pytest.mark.parametrize("bad", [[math.nan, 0.0], [math.inf, 0.0], [0.0] * 4])
def test_a_total_that_cannot_be_is_refused(bad: list[float]) -> None:
    noise = GridNoise(SecureNoise(), grid(3, 0.5, 3.0, honest=2, sites=2))
    with pytest.raises(ValueError, match="sealed"):
        noise.add_noise(torch.tensor(bad), 1.5)
