"""FlexLoRA: average the products, then factorise the mean at rank r."""

from __future__ import annotations

from typing import ClassVar

from lorica.common.adapter.factors import factorise
from lorica.common.adapter.state import State
from lorica.server.aggregation.means.products import MeanOfProducts
from lorica.server.aggregation.means.weighted import rule


@rule
class FlexLoRA(MeanOfProducts):
    """With the singular value decomposition Σ p_k B_k A_k = U Σ Vᵀ: A' = the first r rows of Vᵀ,
    B' = the first r columns of U Σ, head' = Σ p_k head_k.

    Sites may have different ranks r_k <= r (a site's own policy bounds it): a site of lower rank
    keeps the first r_k rows of A and columns of B that it is sent, which is the best it can
    hold, since they are in the order of singular values; it trains those and fills up with
    zeros. It also evaluates what it can hold, not the whole adapter.

    **Not exact** when the mean of the products has a rank above r (K sites of rank r make up to
    K·r)::

        ‖B' A' − Σ p_k B_k A_k‖ = √(σ_{r+1}² + σ_{r+2}² + …)

    in the Frobenius norm, the least of all matrices of rank r. With a single site it is exact.

    Bytes per site, adapted matrix and round, at b bytes a value: up and down b·r·(in + out) each,
    also for a site of lower rank, whose zeros travel; the head, b·labels·(hidden + 1), both ways.
    The coordinator holds 8·out·in bytes more for each matrix.

    Epsilon: none beyond the sites' own. A site of lower rank noises fewer values. That a site's
    rank is lower can be seen in its updates: it is a figure of its policy, not of its data.

    Source: Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks
    and Client Resources" (FlexLoRA, arXiv 2402.11505).
    """

    method: ClassVar[str] = "flexlora"
    exact: ClassVar[bool] = False

    def _recombine(self, mean: State) -> State:
        for path, (name_a, name_b) in self._pairs.items():
            rank = mean[name_a].shape[0]
            mean[name_a], mean[name_b] = factorise(self._products[path], rank)
        return mean
