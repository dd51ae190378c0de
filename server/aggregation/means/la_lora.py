"""LA-LoRA: the factors alternate from one local step to the next."""

from __future__ import annotations

from typing import ClassVar

from lorica.server.aggregation.means.weighted import WeightedMean, rule


@rule
class LALoRA(WeightedMean):
    """B' = B̄, A' = Ā, head' = Σ p_k head_k, after local steps that train B, A, B, A, … in turn.

    B comes first, because A has no gradient while B is 0. In every step the frozen factor is
    common to all records of the batch, so the step's noise enters the product B·A once and
    linearly; the clip norm is divided among half the values.

    **Not exact** beyond one local step: a site's later steps build on a factor of its own, and
    the mean misses Σ p_k (B_k − B̄)(A_k − Ā), as under ``fedavg``. With one local step a round
    A never moves, and the rule is ``ffa``.

    Smoothing of the noised gradients over steps is the plan's ``training.smoothing``, for every
    method. (The paper smooths each gradient with a fixed Gaussian kernel instead.)

    Bytes per site, adapted matrix and round, at b bytes a value: up b·r·(in + out), down the
    same; the head, b·labels·(hidden + 1), both ways.

    Epsilon: none beyond the sites' own; a step costs what a step on all values costs.

    Source: Liu et al., "Rethinking LoRA for Privacy-Preserving Federated Learning in Large
    Models" (LA-LoRA, arXiv 2602.19926).
    """

    method: ClassVar[str] = "la-lora"
    exact: ClassVar[bool] = False
