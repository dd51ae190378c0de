"""FedSVD: average B, then re-factorise the product so that A has orthonormal rows."""

from __future__ import annotations

from typing import ClassVar

import torch

from lorica.common.methods import factor_pairs
from lorica.server.aggregation.base import State, WeightedMean, rule


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
            mean[name_a], mean[name_b] = refactorise(mean[name_a], mean[name_b])
        return mean


def refactorise(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (A', B') of the same product B·A, with orthonormal rows in A'.

    Row i of A' is the i-th right singular vector of B·A, column i of B' the left one times its
    singular value, in falling order. Where B·A has rank below r (B = 0 at the start of a run),
    the rows left over complete an orthonormal basis of A's row space. When r > in, only ``in``
    rows can be orthonormal: the rest of A', and of B', is zero.

    Each row of A' has its entry of largest magnitude positive. The same input so gives the
    same factors; where singular values coincide, inputs that differ by rounding may give
    factors rotated against each other, of the same product.

    The matrix out × in is never formed: with B = Q_B R_B and Aᵀ = Q_A R_A, the core R_B R_Aᵀ
    (at most r × r) has the same singular values, and its right singular vectors are V in the
    basis Q_A. Cost O((in + out + r)·r²).

    Args:
        a: A, shape (r, in), finite.
        b: B, shape (out, r), finite.

    Returns:
        A' of shape (r, in) and B' of shape (out, r), in float64.
    """
    a, b = a.to(torch.float64), b.to(torch.float64)
    r_b = torch.linalg.qr(b, mode="r").R  # (min(out, r), r)
    q_a, r_a = torch.linalg.qr(a.T)  # (in, n), (n, r) with n = min(in, r)
    v_t = torch.linalg.svd(r_b @ r_a.T, full_matrices=True).Vh  # (n, n), also when out < n
    rows = v_t @ q_a.T
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    rows = torch.where(largest < 0, -rows, rows)

    new_a, new_b = torch.zeros_like(a), torch.zeros_like(b)
    new_a[: len(rows)] = rows
    new_b[:, : len(rows)] = b @ (a @ rows.T)
    return new_a, new_b
