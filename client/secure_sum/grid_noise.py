"""A site's share of the noise in a sealed sum, as a source of noise like any other.

What the DP engine adds noise to goes on the sum's integer grid and gets this site's share of
discrete Gaussian noise; the integers are kept, in the order of the releases, and are all that the
site gives to the sum.

Formal guarantee:
    *Neighbouring relation and mechanism*: as of :mod:`lorica.common.privacy.shared_noise`. All
    releases of one answer together are one vector of L2 sensitivity Δ, the grid's ``bound``; the
    share's variance v follows from the grid (:mod:`lorica.common.secure_sum.grid`). A release whose
    noise is not the one that the grid was made for is refused, before anything is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from lorica.client.mechanism.noise import NoiseSource
from lorica.common.secure_sum.grid import Grid


class GridNoise:
    """A :class:`~lorica.client.mechanism.noise.NoiseSource` for one answer."""

    def __init__(self, inner: NoiseSource, grid: Grid) -> None:
        """
        Args:
            inner: where sampling and noise come from.
            grid: of the sum.
        """
        self.kind: Literal["secure", "seeded"] = inner.kind
        self._inner, self._grid = inner, grid
        self.released: list[torch.Tensor] = []
        """The integers of every release so far, int64, in the shape that it had."""

    @property
    def whole(self) -> bool:
        """Whether all of the sum's values have been released."""
        return sum(part.numel() for part in self.released) == self._grid.values

    def add_noise(self, total: torch.Tensor, std: float) -> torch.Tensor:
        """Put ``total`` on the grid, with this site's share of the noise, and keep the integers.

        Returns:
            What they stand for, float32: the site's own part, for nobody else.

        Raises:
            ValueError: std is not what the grid was made for, or ``total`` is not finite.
        """
        grid = self._grid
        if not math.isclose(std, grid.sigma * grid.bound, rel_tol=1e-9):
            raise ValueError(f"The grid is for noise of {grid.sigma * grid.bound}, not {std}.")
        flat = total.detach().cpu().double().flatten().numpy()
        integers = grid.integers(flat)
        if grid.variance:
            integers += self._inner.discrete(len(integers), grid.variance)
        kept = torch.from_numpy(integers).reshape(total.shape)
        self.released.append(kept)
        return (kept.double() * grid.step).float().to(total.device)

    def gaussian(self, shape: Sequence[int] | torch.Size, std: float) -> torch.Tensor:
        """As the inner source's."""
        return self._inner.gaussian(shape, std)

    def poisson_mask(self, count: int, rate: float) -> torch.Tensor:
        """As the inner source's."""
        return self._inner.poisson_mask(count, rate)

    def discrete(self, count: int, variance: int) -> npt.NDArray[np.int64]:
        """As the inner source's."""
        return self._inner.discrete(count, variance)
