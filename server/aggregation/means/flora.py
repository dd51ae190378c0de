"""FLoRA: stack the sites' factors, merge the stack into the weight, start anew."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import torch

from lorica.common.adapter.state import State
from lorica.common.plan.tensors import residual_name
from lorica.server.aggregation.means.products import MeanOfProducts
from lorica.server.aggregation.means.weighted import rule


@rule
class FLoRA(MeanOfProducts):
    """R' = R + Σ p_k B_k A_k, B' = 0, A' drawn anew with orthonormal rows, head' = Σ p_k head_k.

    The stack [p_1 B_1 … p_K B_K]·[A_1; …; A_K] is Σ p_k B_k A_k. It is added to the residual R,
    of shape (out, in), which sites add to a copy of their own of the frozen weight, and every
    round trains fresh factors beside it. So the adapter's rank grows by up to K·r a round. Sites
    may have different ranks r_k <= r, as under ``flexlora``.

    **Exact**: R' + B'·A' = R + Σ p_k B_k A_k, up to float32 rounding of R'.

    A' is the same for all sites, and follows from the A before it by SHA-256, so a resumed run
    draws the same. Each round begins with B = 0, where A has no gradient: the first local step
    moves A by noise alone, which harms no product while B is 0.

    Bytes per site, adapted matrix and round, at b bytes a value: up b·r·(in + out), down
    b·(r·(in + out) + out·in). (The paper sends the stack, b·Σ r_k·(in + out), down.) The head,
    b·labels·(hidden + 1), both ways. The coordinator holds 8·out·in bytes more for each matrix,
    a site 4·out·in.

    Epsilon: none beyond the sites' own.

    Source: Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous
    Low-Rank Adaptations" (arXiv 2409.05976).
    """

    method: ClassVar[str] = "flora"
    exact: ClassVar[bool] = True

    def _recombine(self, mean: State) -> State:
        for path, (name_a, name_b) in self._pairs.items():
            mean[residual_name(path)] += self._products[path]
            mean[name_a] = _fresh(self._start[name_a])
            mean[name_b] = torch.zeros_like(mean[name_b])
        return mean


def _fresh(a: torch.Tensor) -> torch.Tensor:
    """The A after ``a``: random orthonormal rows (columns where r > in), float64."""
    digest = hashlib.sha256(a.contiguous().numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
    rows, width = a.shape
    shape = max(rows, width), min(rows, width)
    gaussian = torch.randn(shape, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(gaussian)[0]
    return basis if rows > width else basis.T
