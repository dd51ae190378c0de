"""LogME against the density that it is: a multivariate normal's, at its maximum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from lorica.client.choice.logme import _evidence, logme


def density(features: np.ndarray, target: np.ndarray, alpha: float, beta: float) -> float:
    """log N(y; 0, I/β + F Fᵀ/α) / n, as the paper's equation 2 stands for."""
    covariance = np.eye(len(target)) / beta + features @ features.T / alpha
    return float(multivariate_normal(np.zeros(len(target)), covariance).logpdf(target)) / len(
        target
    )


@pytest.mark.parametrize(("records", "width"), [(40, 6), (30, 50)])
def test_the_figure_is_the_largest_density_of_the_labels(records: int, width: int) -> None:
    """Against scipy's density, and scipy's own search over α and β; with more features, too."""
    draw = np.random.default_rng(0)
    features = draw.normal(size=(records, width))
    target = (features[:, 0] + 0.5 * draw.normal(size=records) > 0).astype(float)
    tensor = torch.from_numpy(features)
    left, sizes, _ = torch.linalg.svd(tensor, full_matrices=False)
    column = torch.from_numpy(target)
    found, alpha, beta = _evidence(left.T @ column, column, sizes.square(), width)
    assert found == pytest.approx(density(features, target, alpha, beta), abs=1e-8)
    search = minimize(
        lambda logs: -density(features, target, math.exp(logs[0]), math.exp(logs[1])),
        np.zeros(2),
        method="Nelder-Mead",
    )
    assert found == pytest.approx(-search.fun, abs=1e-4)


def test_features_that_tell_labels_apart_have_the_higher_figure() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    noise = torch.randn(300, 10, generator=generator)
    told = noise + 3 * torch.nn.functional.one_hot(labels, 10)
    some = noise + 1 * torch.nn.functional.one_hot(labels, 10)
    figures = [logme(features, labels, 3) for features in (noise, some, told)]
    assert figures == sorted(figures) and figures[2] > figures[0] + 0.1


def test_a_label_without_records_counts_for_nothing() -> None:
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(20) % 2
    assert logme(features, labels, 5) == pytest.approx(logme(features, labels, 2))
