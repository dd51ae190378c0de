"""LogME: how well a linear model explains labels by features, without training one.

Source: You, Liu, Wang, Long, "LogME: Practical Assessment of Pre-trained Models for Transfer
Learning", ICML 2021, equation 2 and algorithm 1 (in the fixed-point form of its optimised variant).

For a label's 0/1 column y (n,) and features F (n, D), y ~ N(F w, β⁻¹ I) with w ~ N(0, α⁻¹ I), so
that y ~ N(0, β⁻¹ I + α⁻¹ F Fᵀ). Its log density, maximised over α and β and divided by n, is the
label's figure; the mean over labels is LogME. It is higher where features tell labels better.

The figure is exact: as private as the records.
"""

from __future__ import annotations

import math

import torch

_TURNS = 100
_NEAR = 1e-6  # relative change of α/β at which it is settled
_LEAST = 1e-12


def logme(features: torch.Tensor, labels: torch.Tensor, count: int) -> float:
    """The figure of features (n, D) for labels (n,) in 0 … ``count`` - 1."""
    left, sizes, _ = torch.linalg.svd(features.double(), full_matrices=False)
    squares = sizes.square()
    found = []
    for label in range(count):
        target = (labels == label).double()
        if bool(target.any()):
            found.append(_evidence(left.T @ target, target, squares, features.shape[1])[0])
    return sum(found) / len(found)


def _evidence(
    seen: torch.Tensor, target: torch.Tensor, squares: torch.Tensor, width: int
) -> tuple[float, float, float]:
    """Log evidence by n, and the α and β that maximise it.

    Args:
        seen: Uᵀ y of the features' singular vectors.
        target: y.
        squares: squared singular values.
        width: D.
    """
    n = len(target)
    outside = max(0.0, float(target.square().sum() - seen.square().sum()))
    alpha = beta = 1.0
    for _ in range(_TURNS):
        ratio = alpha / beta
        used = float((squares / (squares + ratio)).sum())
        weights = max(_LEAST, float((squares * seen.square() / (squares + ratio).square()).sum()))
        left = (seen * ratio / (squares + ratio)).square().sum()
        residual = max(_LEAST, float(left) + outside)
        alpha, beta = used / weights, max(_LEAST, n - used) / residual
        if abs(alpha / beta - ratio) <= _NEAR * ratio:
            break
    ratio = alpha / beta
    weights = float((squares * seen.square() / (squares + ratio).square()).sum())
    residual = float((seen * ratio / (squares + ratio)).square().sum()) + outside
    spread = float(torch.log(alpha + beta * squares).sum())
    spread += (width - len(squares)) * math.log(alpha)
    evidence = 0.5 * (
        width * math.log(alpha)
        + n * math.log(beta)
        - n * math.log(2 * math.pi)
        - beta * residual
        - alpha * weights
        - spread
    )
    return evidence / n, alpha, beta
