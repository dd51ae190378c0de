"""FedEx-LoRA: average A and B apart and keep what that misses as a residual weight."""

from __future__ import annotations

from typing import ClassVar

from lorica.common.adapter.state import State
from lorica.common.plan.tensors import residual_name
from lorica.server.aggregation.means.products import MeanOfProducts
from lorica.server.aggregation.means.weighted import rule


@rule
class FedEx(MeanOfProducts):
    """B' = B̄, A' = Ā, R' = R + Σ p_k B_k A_k − B̄ Ā, head' = Σ p_k head_k.

    R, of shape (out, in), is a part of the adapter: the adapted weight is W + s·(R + B·A).
    Sites add s·R to a copy of their own of the frozen weight and never train it.

    **Exact**: R' + B'·A' = R + Σ p_k B_k A_k, up to float32 rounding of R'. What ``fedavg``
    misses, the covariance of the factors across sites, is R' − R; it is of any rank up to
    min(out, in), so it cannot be held at rank r. It also holds the products of the noise in both
    factors, as Σ p_k B_k A_k does: exactness is not less noise.

    Bytes per site, adapted matrix and round, at b bytes a value: up b·r·(in + out), down
    b·(r·(in + out) + out·in), since R is sent whole; the head, b·labels·(hidden + 1), both
    ways. The coordinator holds 8·out·in bytes more for each matrix, a site 4·out·in.

    Epsilon: none beyond the sites' own.

    Source: Singhal, Ponkshe, Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and
    Efficient Fine-Tuning of Foundation Models" (arXiv 2410.09432).
    """

    method: ClassVar[str] = "fedex"
    exact: ClassVar[bool] = True

    def _recombine(self, mean: State) -> State:
        for path, (name_a, name_b) in self._pairs.items():
            mean[residual_name(path)] += self._products[path] - mean[name_b] @ mean[name_a]
        return mean
