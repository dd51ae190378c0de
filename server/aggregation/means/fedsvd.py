"""FedSVD: average B, then re-factorise the product so that A has orthonormal rows."""

from __future__ import annotations

from typing import ClassVar

import torch

from lorica.common.adapter.factors import refactorise
from lorica.common.adapter.state import State
from lorica.common.plan.tensors import factor_pairs
from lorica.server.aggregation.means.weighted import WeightedMean, rule


@rule
class FedSVD(WeightedMean):
    """With the singular value decomposition B̄·A = U Σ Vᵀ: A' = Vᵀ, B' = U Σ (= B̄·A·A'ᵀ).

    Sites train B under a common A, as in FFA; head' = Σ p_k head_k.

    **Exact**: B'·A' = B̄·A = Σ p_k B_k A, up to float32 rounding. The scaling alpha / r is the
    same before and after and cancels.

    Orthonormal rows of A bound the gradient, ‖∂L/∂B‖ = s·‖∂L/∂W·Aᵀ‖ <= s·‖∂L/∂W‖, and a step in
    B, noise included, moves B·A by its own length, alike in all r directions. What the rule
    does *not* do:

    - The row space of A stays that of the start, since sites never train A: re-factorisation
      rotates and rescales A within it. FedSVD reaches no weight that FFA cannot reach.
    - Once the rows are orthonormal (after the first round), later rounds only rotate: A' = Q A,
      B' = B̄ Qᵀ with Q orthogonal. SGD, clipped by the whole gradient's norm and with isotropic
      noise, commutes with that in distribution; only per-coordinate optimizers (Adam) notice.

    Bytes per site, adapted matrix and round, at b bytes a value: up b·r·out; down b·r·(in + out),
    since A changes; the head, b·labels·(hidden + 1), both ways.

    Epsilon: none beyond the sites' own. A' is computed from noised B alone.

    Source: Lee et al., "FedSVD: Adaptive Orthogonalization for Private Federated Learning with
    LoRA" (arXiv 2505.12805).
    """

    method: ClassVar[str] = "fedsvd"
    exact: ClassVar[bool] = True

    def _recombine(self, mean: State) -> State:
        for name_a, name_b in factor_pairs(mean).values():
            old = mean[name_a]
            mean[name_a], mean[name_b] = refactorise(old, mean[name_b])
            self._turn_memory(name_b, old @ mean[name_a].T)
        return mean

    def _turn_memory(self, name_b: str, turn: torch.Tensor) -> None:
        """Moments of B in the new axes, as B itself: B' = B·A·A'ᵀ. Squares turn by that matrix'
        squares, which is right where values are uncorrelated."""
        for key, matrix in ((f"m.{name_b}", turn), (f"v.{name_b}", turn.square())):
            if key in self.memory:
                self.memory[key] = self.memory[key] @ matrix
