"""The warm start: a head in closed form from noised sums of every label's features."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch.nn import functional

from lorica.common.tasks.text_classification import ZERO_SHOT_SCALE
from lorica.server.aggregation.sums import SumOfReleases
from lorica.server.screening import State

PRIOR_RECORDS = 10.0
"""Weight of a label's name, in records, where there is no noise."""

PRIOR_NOISE = 0.5
"""Weight of a label's name per length of the noise in a row, σ√(K·H)."""


class ClassSums(SumOfReleases):
    """W_c = s · normalize(m·e_c + M_c), b = 0.

    M_c is the noised sum over all sites of the features with label c, e_c the direction of the
    label's name (row c of the head at the start), s the scale of that start, and
    m = 10 + σ√(K·H)/2 for K sites: the noisier the sums, the more weight the names keep. Rows of
    one length give every label the same prior, whatever its number of records.

    Bytes per site, at b bytes a value: b·labels·hidden up, the head down; once.

    Epsilon: none beyond the sites' own release.

    Source: nearest-mean heads from noised class means, as in Geyer et al. (arXiv 1712.07557)
    for clients' sums, with a prior from label names as in zero-shot classification.
    """

    method: ClassVar[str] = "class-sums"

    def __init__(self, start: State, *, noise_multiplier: float) -> None:
        """``noise_multiplier``: σ of one site's sums, whose sensitivity is 1."""
        super().__init__(start, ["head.weight"])
        self._sigma = noise_multiplier

    def finish(self) -> State:
        self._enough()
        sums = self._total["head.weight"]
        names = functional.normalize(self._start["head.weight"].double(), dim=1)
        noise = self._sigma * math.sqrt(self._sites * sums.shape[1])
        rows = functional.normalize((PRIOR_RECORDS + PRIOR_NOISE * noise) * names + sums, dim=1)
        head = ZERO_SHOT_SCALE * rows
        return self._next(
            {"head.weight": head, "head.bias": torch.zeros(len(head), dtype=torch.float64)}
        )
