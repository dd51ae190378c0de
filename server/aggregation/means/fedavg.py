"""FedAvg: average A, B and the head, each apart."""

from __future__ import annotations

from typing import ClassVar

from lorica.server.aggregation.means.weighted import WeightedMean, rule


@rule
class FedAvg(WeightedMean):
    """B' = B̄, A' = Ā, head' = Σ p_k head_k.

    **Not exact.** The product B̄·Ā falls short of the mean of the products by the covariance of
    the factors across sites::

        Σ p_k B_k A_k − B̄ Ā  =  Σ p_k (B_k − B̄)(A_k − Ā)

    of Frobenius norm at most Σ p_k ‖B_k − B̄‖·‖A_k − Ā‖. It vanishes when all sites agree on B
    or all agree on A (so with a single site), and otherwise only by cancellation. It grows with
    local drift and with the product of the noise in both factors. A stream of updates does not
    hold what would be needed to correct it at rank r.

    Bytes per site, adapted matrix and round, at b bytes a value: up b·r·(in + out), down the
    same; the head, b·labels·(hidden + 1), both ways.

    Epsilon: none beyond the sites' own.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data" (arXiv 1602.05629), applied to LoRA factors; the discordance between
    the mean of products and the product of means is the subject of Sun et al. (arXiv 2403.12313).
    """

    method: ClassVar[str] = "fedavg"
    exact: ClassVar[bool] = False
