"""Adam for every weight of the LoRA factors, in which the noise is known; and how much is signal.

Everything here is computed from noised sums and public figures: post-processing, at no ε.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch

from lorica.common.adapter.state import State

MOST_BOOST = 3.0
"""Factor of the step size where the signal is less than a third of the noise."""

_SIGNAL = "lora.signal"


class PerWeightAdam:
    """u = m̂ / √max(v̂ - s², s²) for every weight, with bias-corrected moments of noised sums.

    s² is the noise's known variance in a value of the sum. Taken out of the second moment, it
    leaves the gradient's own (DP-AdamBC, arXiv 2312.14334); where that is less than the noise, it
    cannot be told from 0, and all weights have one divisor, s: there the step is that of momentum
    SGD. Without noise it is Adam (arXiv 1412.6980).

    Steps then need two things of the whole stage, T rounds of which have a signal of ρ times the
    noise in all d values together, ρ² = E‖G‖²/(d s²) - 1, known to √(2/d):

    - where all drowns, u's part that is signal is ρ times as long as one of Adam's: the step is
      1/ρ times as long, at most ``MOST_BOOST`` times;
    - the signal of T such steps adds up to R = 2ρ √T times their noise (twice: the later steps are
      shorter, and what they walk at random is in directions that matter less): the step is
      R²/(1 + R²) times as long, as Wiener's filter has it. Factors whose gradient drowns stay where
      they are.
    """

    def __init__(
        self, before: Mapping[str, torch.Tensor], *, momentum: float, second_moment: float
    ) -> None:
        """
        Args:
            before: the coordinator's memory after the last round.
            momentum: β₁.
            second_moment: β₂.
        """
        self._before = before
        self._beta = momentum, second_moment
        self.memory: State = {}
        """What is to be kept for the next round."""

    def along(self, name: str, total: torch.Tensor, t: int, variance: float) -> torch.Tensor:
        """u of one tensor.

        Args:
            name: of the tensor.
            total: the noised sum, float64.
            t: number of the round among those that train it, from 1.
            variance: s², of the noise in a value of the sum; 0 without privacy.
        """
        first, second = self._beta
        m = (1 - first) * total + first * self._kept("m", name, total, t)
        v = (1 - second) * total.square() + second * self._kept("v", name, total, t)
        self.memory[f"m.{name}"], self.memory[f"v.{name}"] = m.float(), v.float()
        m, v = m / (1 - first**t), v / (1 - second**t)
        if variance:
            v = (v - variance).clamp(min=variance)
        return torch.where(v > 0, m / v.sqrt().clamp(min=1e-150), 0.0)

    def length(
        self, totals: Collection[torch.Tensor], t: int, rounds: int, variance: float
    ) -> float:
        """The factor of all tensors' steps in a round; 1 without noise.

        Args:
            totals: the noised sums of all tensors that are trained.
            t: number of the round in its stage, from 1.
            rounds: T.
            variance: s².
        """
        if not variance:
            return 1.0
        values = sum(total.numel() for total in totals)
        energy = sum(float(total.square().sum()) for total in totals)
        seen = energy / (values * variance) - 1.0
        earlier = float(self._before[_SIGNAL]) if t > 1 else 0.0
        mean = earlier + (seen - earlier) / t
        self.memory[_SIGNAL] = torch.tensor([mean], dtype=torch.float64)
        share = max(0.0, mean)
        if not share:
            return 0.0
        boost = min(MOST_BOOST, max(1.0, 1.0 / math.sqrt(share)))
        apart = 4.0 * rounds * share
        return boost * apart / (1.0 + apart)

    def _kept(self, moment: str, name: str, total: torch.Tensor, t: int) -> torch.Tensor:
        if t == 1:
            return torch.zeros_like(total)
        return self._before[f"{moment}.{name}"].double()
