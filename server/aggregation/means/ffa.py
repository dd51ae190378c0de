"""FFA-LoRA: freeze A at a common start, average B and the head."""

from __future__ import annotations

from typing import ClassVar

from lorica.server.aggregation.means.weighted import WeightedMean, rule


@rule
class FFA(WeightedMean):
    """B' = B̄, A' = A (to the bit), head' = Σ p_k head_k.

    **Exact**, since the product is linear in B when A is common::

        B̄ A  =  (Σ p_k B_k) A  =  Σ p_k B_k A

    up to float32 rounding of B'. The price is reach: the adapted weight moves only within the
    row space of the A of the start, drawn before any data were seen.

    Bytes per site, adapted matrix and round, at b bytes a value: up b·r·out; down b·r·out, and
    b·r·in more when A is sent again although it never changes; the head, b·labels·(hidden + 1),
    both ways.

    Epsilon: none beyond the sites' own. With half the factors fixed there is no product of two
    noises either.

    Source: Sun et al., "Improving LoRA in Privacy-preserving Federated Learning" (FFA-LoRA,
    arXiv 2403.12313).
    """

    method: ClassVar[str] = "ffa"
    exact: ClassVar[bool] = True
