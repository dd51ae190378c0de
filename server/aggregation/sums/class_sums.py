"""The warm start: a head in closed form from noised sums of every label's features."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch.nn import functional

from lorica.common.adapter.state import State
from lorica.common.tasks.text_classification import ZERO_SHOT_SCALE
from lorica.server.aggregation.sums.base import SumOfReleases

PRIOR_RECORDS = 10.0
"""Weight of a label's name, in records, where there is no noise."""

PRIOR_NOISE = 0.5
"""Weight of a label's name per length of the noise in a row, σ√(K·H)."""


UNNAMED_SCALE = 8.0
"""Length of a row without a name, whose direction is less sure."""


class ClassSums(SumOfReleases):
    """W_c = s · normalize(m·e_c + M_c), b = 0.

    M_c is the noised sum over all sites of the features with label c, e_c the direction of the
    label's name (row c of the head at the start), s the scale of that start, and
    m = 10 + σ√(K·H)/2 for K sites: the noisier the sums, the more weight the names keep. Rows of
    one length give every label the same prior, whatever its number of records.

    *The center*, where the plan asks for one: with u = Σ_c M_c and N the records that the sites
    declare, the mean feature is m = u / N, shrunk by max(0, 1 - K·C·H·σ² / ‖u‖²) as in James-Stein
    and never longer than 1. Then m joins the center, and M_c and e_c lose what they have along
    m / ‖m‖: of M_c it is the label's number of records, which tells nothing apart; and left in the
    features it is the direction in which every gradient of the head first goes astray. Features
    are (x - c) / ρ, for pooled states x and the center c that they were summed with, so that the
    new center is c + ρ·m; ρ is taken as its root mean square, which follows from c and m, since x
    has length 1: ρ² = 1 - ‖c‖² - 2ρ m·c.

    *Without names* (e_c = 0: labels say nothing of pixels) there is no prior, c is 0, and rows have
    length 8. Where no site declares its size, names keep their own center.

    Bytes per site, at b bytes a value: b·labels·hidden up, the head down; once.

    Epsilon: none beyond the sites' own release.

    Source: nearest-mean heads from noised class means, as in Geyer et al. (arXiv 1712.07557)
    for clients' sums, with a prior from label names as in zero-shot classification.
    """

    method: ClassVar[str] = "class-sums"

    def __init__(self, start: State, *, noise_multiplier: float, center: bool = False) -> None:
        """
        Args:
            start: as in :class:`Aggregator`.
            noise_multiplier: σ of one site's sums, whose sensitivity is 1.
            center: whether the plan asks for a center.
        """
        super().__init__(start, ["head.weight"])
        self._sigma = noise_multiplier
        self._named = bool(start["head.weight"].any())
        self._centers = center
        self._units = 0.0

    def add(self, update: State, weight: float) -> None:
        super().add(update, weight)
        self._units += weight

    def finish(self) -> State:
        self._enough()
        sums = self._total["head.weight"]
        names = functional.normalize(self._start["head.weight"].double(), dim=1)
        noise = self._sigma * math.sqrt(self._sites * sums.shape[1])
        changed = {"head.bias": torch.zeros(len(sums), dtype=torch.float64)}
        rows = (PRIOR_RECORDS + PRIOR_NOISE * noise) * names + sums
        if self._centers and (self._units or not self._named):
            mean = self._mean(sums)
            along = functional.normalize(mean, dim=0)
            rows = rows - (rows @ along)[:, None] * along
            changed["head.center"] = _joined(self._start["head.center"].double(), mean)
        rows = functional.normalize(rows, dim=1)
        scale = ZERO_SHOT_SCALE if self._named else UNNAMED_SCALE
        return self._next(changed | {"head.weight": scale * rows})

    def _mean(self, sums: torch.Tensor) -> torch.Tensor:
        """The mean feature (H,), as far as it stands out of the noise."""
        whole = sums.sum(0)
        square = float(whole.square().sum())
        noise = self._sites * sums.numel() * self._sigma**2
        kept = max(0.0, 1.0 - noise / square) if square else 0.0
        return kept * whole / max(self._units, math.sqrt(square), 1.0)


def _joined(center: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """The center (H,) of features whose mean, by a center that they have, is ``mean``."""
    along = float(center @ mean)
    length = math.sqrt(max(0.0, along**2 + 1.0 - float(center @ center))) - along
    return center + length * mean
