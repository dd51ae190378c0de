"""One site's part of a head round in plain PyTorch, as the peers of ``simulators`` run it.

The mathematics of Lorica's head rounds in float32, as a researcher would write them: the gradient
of every record's cross-entropy by a linear head on cached features, clipped record by record (a
head's gradient is an outer product, so no gradient is written out), summed, and noised.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

BIAS_INPUT = 0.1


@dataclass(frozen=True)
class Task:
    """What all sides run."""

    sites: list[tuple[torch.Tensor, torch.Tensor]]
    """Features (n, H) and labels (n,) of every site."""
    labels: int
    sigma: float
    clip_norm: float
    rounds: int
    empty: bool
    """Whether a site's work is replaced by a constant."""

    @staticmethod
    def read(path: Path, *, rounds: int, empty: bool) -> Task:
        """From the file that ``simulators`` writes."""
        with np.load(path) as held:
            features, labels = held["features"], held["labels"]
            rows, counts = held["rows"], held["counts"]
            about = json.loads(str(held["about"]))
        parts = np.split(rows, np.cumsum(counts)[:-1])
        sites = [(torch.from_numpy(features[p]), torch.from_numpy(labels[p])) for p in parts]
        return Task(sites, about["labels"], about["sigma"], about["clip_norm"], rounds, empty)

    def start(self) -> torch.Tensor:
        """The head before its first round, bias last: (C, H + 1)."""
        return torch.zeros(self.labels, self.sites[0][0].shape[1] + 1)

    def release(self, head: torch.Tensor, site: int) -> torch.Tensor:
        """What a site releases: (C, H + 1)."""
        if self.empty:
            return torch.ones_like(head)
        features, labels = self.sites[site]
        inputs = torch.cat([features, torch.full((len(features), 1), BIAS_INPUT)], dim=1)
        left = torch.softmax(inputs @ head.T, dim=1)
        left[torch.arange(len(labels)), labels] -= 1.0
        norms = left.norm(dim=1) * inputs.norm(dim=1)
        left *= (self.clip_norm / (norms + 1e-12)).clamp(max=1.0)[:, None]
        return left.T @ inputs + self.sigma * self.clip_norm * torch.randn(head.shape)


@functools.cache
def held(path: str, rounds: int, empty: bool) -> Task:
    """The task, read once in a process."""
    return Task.read(Path(path), rounds=rounds, empty=empty)


class Step:
    """The coordinator's: momentum over the root mean square of the sums."""

    def __init__(self) -> None:
        self._m: torch.Tensor | None = None
        self._v = 0.0

    def __call__(self, head: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """The next head."""
        self._m = total if self._m is None else 0.9 * self._m + 0.1 * total
        self._v = 0.9 * self._v + 0.1 * float(total.square().mean())
        return head - 0.1 * self._m / (self._v**0.5 + 1e-12)
