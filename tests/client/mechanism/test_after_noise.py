"""What follows the noise: smoothing and the proximal pull, by formula and at no cost."""

from __future__ import annotations

import pytest
import torch

from lorica.client.mechanism.after_noise import AfterNoise


def steps(after: AfterNoise, gradients: torch.Tensor, weight: torch.nn.Parameter) -> torch.Tensor:
    """What the gradients of one parameter become, step after step."""
    found = []
    for gradient in gradients:
        weight.grad = gradient.clone()
        after([weight])
        found.append(weight.grad)
    return torch.stack(found)


def make(
    weight: torch.nn.Parameter, *, smoothing: float = 0.0, proximal: float = 0.0
) -> AfterNoise:
    return AfterNoise(
        smoothing=smoothing, proximal=proximal, origin={weight: weight.detach().clone()}
    )


def test_zeros_change_nothing() -> None:
    weight = torch.nn.Parameter(torch.randn(5))
    gradients = torch.randn(4, 5)
    assert torch.equal(steps(make(weight), gradients, weight), gradients)


def test_the_proximal_term_is_the_gradient_of_its_penalty() -> None:
    """Against autograd on μ/2 ‖θ − θ_global‖²."""
    weight = torch.nn.Parameter(torch.randn(5))
    after, origin = make(weight, proximal=0.7), weight.detach().clone()
    with torch.no_grad():
        weight += torch.randn(5)
    penalty = 0.7 / 2 * (weight - origin).square().sum()
    (expected,) = torch.autograd.grad(penalty, [weight])
    gradient = torch.randn(5)
    assert torch.allclose(steps(after, gradient[None], weight)[0], gradient + expected)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_smoothing_is_the_weighted_mean_of_all_steps_so_far(share: float) -> None:
    """Against the sum written out."""
    weight = torch.nn.Parameter(torch.zeros(3))
    gradients = torch.randn(6, 3, dtype=torch.float32)
    found = steps(make(weight, smoothing=share), gradients, weight)
    for last in range(6):
        weights = torch.tensor([share ** (last - step) for step in range(last + 1)])
        expected = (weights[:, None] * gradients[: last + 1]).sum(0) / weights.sum()
        assert torch.allclose(found[last], expected, atol=1e-6)


def test_smoothing_leaves_the_stated_share_of_the_noise() -> None:
    """(1 − ρ)/(1 + ρ) of the variance, against 20,000 independent values."""
    weight = torch.nn.Parameter(torch.zeros(20_000))
    gradients = torch.randn(60, 20_000, generator=torch.Generator().manual_seed(0))
    found = steps(make(weight, smoothing=0.8), gradients, weight)
    assert float(found[-1].var()) == pytest.approx(0.2 / 1.8, rel=0.05)


def test_each_parameter_is_smoothed_over_the_steps_that_train_it() -> None:
    one, two = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    after = AfterNoise(smoothing=0.5, proximal=0.0, origin={})
    one.grad, two.grad = torch.ones(2), 4 * torch.ones(2)
    after([one])
    after([two])
    assert torch.equal(one.grad, torch.ones(2)) and torch.equal(two.grad, 4 * torch.ones(2))
