"""What the rules that average products share."""

from __future__ import annotations

from collections.abc import Collection

import torch

from lorica.common.adapter.state import State
from lorica.common.plan.tensors import factor_pairs
from lorica.server.aggregation.means.server_optimizer import ServerOptimizer
from lorica.server.aggregation.means.weighted import WeightedMean


class MeanOfProducts(WeightedMean):
    """Rules that also keep Σ p_k B_k A_k of every LoRA module, in float64.

    Memory does not grow with the number of sites, but holds one (out, in) matrix for every
    module: 8·out·in bytes each.
    """

    def __init__(
        self,
        start: State,
        names: Collection[str] | None = None,
        optimizer: ServerOptimizer | None = None,
    ) -> None:
        super().__init__(start, names, optimizer)
        self._pairs = factor_pairs(self._start)
        self._products = {
            path: torch.zeros(
                self._start[name_b].shape[0], self._start[name_a].shape[1], dtype=torch.float64
            )
            for path, (name_a, name_b) in self._pairs.items()
        }

    def _absorb(self, update: State, share: float) -> None:
        super()._absorb(update, share)
        for path, (name_a, name_b) in self._pairs.items():
            a, b = (
                self._start[name].double() + update[name].detach().double()
                for name in (name_a, name_b)
            )
            self._products[path].lerp_(b @ a, share)
