"""RoLoRA: sites train B in one round and A in the next; the other factor is common."""

from __future__ import annotations

from typing import ClassVar

from lorica.server.aggregation.means.weighted import WeightedMean, rule


@rule
class RoLoRA(WeightedMean):
    """In odd rounds B' = B̄, A' = A; in even ones A' = Ā, B' = B; head' = Σ p_k head_k.

    Rounds are counted from the first that trains LoRA factors. B comes first: it starts at 0, so
    A has no gradient before B has moved, and a private round for A would send noise alone.

    **Exact**: in every round one factor is the same at all sites, and the product is linear in
    the other::

        B̄ A = Σ p_k B_k A        B Ā = Σ p_k B A_k

    up to float32 rounding. Unlike ``ffa`` and ``fedsvd`` it leaves the row space of the first A,
    at half the rounds for each factor; a round never has a product of two noises.

    Bytes per site, adapted matrix and round, at b bytes a value: up b·r·out in odd rounds and
    b·r·in in even ones, down b·r·(in + out); the head, b·labels·(hidden + 1), both ways.

    Epsilon: none beyond the sites' own; the clip norm is divided among fewer values.

    Source: Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of
    LoRA" (RoLoRA, arXiv 2502.01755).
    """

    method: ClassVar[str] = "rolora"
    exact: ClassVar[bool] = True
