"""FedSA-LoRA: share A; every site keeps B and the head for itself."""

from __future__ import annotations

from typing import ClassVar

from lorica.server.aggregation.means.weighted import WeightedMean, rule


@rule
class FedSA(WeightedMean):
    """A' = Ā. B_k and head_k stay at site k (:mod:`lorica.client.training.personal`), which goes on
    from them in its next round, evaluates with them, and never sends them.

    There is no one adapter: site k's adapted weight is W + s·B_k·Ā. As in the source's code the
    head is personal too. It begins at every site as the head that the coordinator sends: that of
    the label names, or of the warm start, which all sites make together.

    **The coordinator's adapter** is Ā with B = 0 and that first head, so it classifies as the
    backbone does: it is what a new site starts from, not a result by itself. A site's result is Ā
    with its own B_k and head_k (``lorica site adapter`` writes it as a folder like any other).

    **Not exact.** A site's product moves from B_k·A_k to B_k·Ā when A is averaged, and the
    mean of the sites' next products falls short of the mean of their products by::

        Σ p_k B_k A_k − (Σ p_k B_k)·Ā  =  Σ p_k (B_k − B̄)(A_k − Ā)

    as under ``fedavg``. It vanishes when all A_k agree, so with a single site.

    Bytes per site, adapted matrix and round, at b bytes a value: up b·r·in, down b·r·in; the
    head goes down alone, b·labels·(hidden + 1). A site keeps two rounds of B_k and head_k.

    Epsilon: the same as of a method that sends everything, not less. B_k and head_k never leave,
    but the A_k that do are trained through them, so they must be as private as what is sent:
    they are moved by the same noised gradients and by nothing else
    (:mod:`lorica.client.training.personal`, *Formal guarantee*).

    Source: Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning"
    (FedSA-LoRA, arXiv 2410.01463).
    """

    method: ClassVar[str] = "fedsa"
    exact: ClassVar[bool] = False
