"""Screening: what is refused, with which code, and what passes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.adapter.state import State, pack_state
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import METHODS, is_returned
from lorica.common.plan.stages import returned as of_round
from lorica.common.privacy.of_plan import public_privacy
from lorica.common.wire.rounding import encode
from lorica.server.aggregation.form import update_norm
from lorica.server.rounds.expected import ExpectedUpdates
from lorica.server.rounds.screening import honest_norm, longest_sum, screen

NAMES = sorted(METHODS)
PATH = "encoder.layer.5.attention.self.query"
A, B = f"{PATH}.lora_A.weight", f"{PATH}.lora_B.weight"
SHAPES = {A: (2, 8), B: (6, 2), "head.weight": (3, 8), "head.bias": (3,), "head.center": (8,)}


def start() -> State:
    return {name: torch.zeros(shape) for name, shape in SHAPES.items()}


def trained(method: str) -> list[str]:
    return [name for name in SHAPES if is_returned(method, name)]


def good(method: str = "fedsvd") -> State:
    return {name: torch.full(SHAPES[name], 0.1) for name in trained(method)}


def refusal(update: State, method: str = "fedsvd", max_norm: float | None = None) -> str:
    with pytest.raises(LoricaError) as caught:
        screen(update, start(), trained(method), max_norm=max_norm)
    assert caught.value.code is Code.UPDATE_REFUSED
    assert caught.value.detail.endswith(".")
    return caught.value.detail


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_update_of_the_trained_tensors_passes(method: str, dtype: torch.dtype) -> None:
    update = {name: tensor.to(dtype) for name, tensor in good(method).items()}
    screen(update, start(), trained(method), max_norm=None)
    screen(update, start(), trained(method), max_norm=100.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [B, "head.weight", "head.bias"])
@pytest.mark.parametrize("max_norm", [None, 1e9])
def test_one_value_that_is_not_finite_refuses_the_update(
    value: float, name: str, max_norm: float | None
) -> None:
    update = good()
    update[name].view(-1)[-1] = value
    assert name in refusal(update, max_norm=max_norm)


def test_a_tensor_too_many_is_refused() -> None:
    assert "'stranger'" in refusal({**good(), "stranger": torch.zeros(2)})


def test_a_frozen_tensor_is_refused() -> None:
    assert A in refusal(good("fedavg"), method="ffa")


@pytest.mark.parametrize("name", [B, "head.bias"])
def test_a_tensor_too_few_is_refused(name: str) -> None:
    update = good()
    del update[name]
    assert name in refusal(update)


def test_an_empty_update_is_refused() -> None:
    assert "lacks" in refusal({})


@pytest.mark.parametrize("shape", [(2, 6), (6, 3), (6,), (6, 2, 1), (12,), (0, 2)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    detail = refusal({**good(), B: torch.zeros(shape)})
    assert str(shape) in detail
    assert "(6, 2)" in detail


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
def test_a_wrong_dtype_is_refused(dtype: torch.dtype) -> None:
    assert "bfloat16" in refusal({**good(), "head.bias": torch.zeros(3, dtype=dtype)})


@pytest.mark.parametrize(
    "make", [lambda: torch.zeros(6, 2).to_sparse(), lambda: [[0.0] * 2] * 6, lambda: None]
)
def test_what_is_no_dense_tensor_is_refused(make: Callable[[], torch.Tensor]) -> None:
    assert "dense" in refusal({**good(), B: make()})


def test_an_update_that_is_too_long_is_refused() -> None:
    update = good()
    norm = update_norm(update)
    screen(update, start(), trained("fedsvd"), max_norm=norm)
    assert "L2 norm" in refusal(update, max_norm=norm * 0.999)
    assert "L2 norm" in refusal({n: t * 1e6 for n, t in update.items()}, max_norm=1e3)


def test_a_bound_that_is_nan_refuses_everything() -> None:
    assert "L2 norm" in refusal(good(), max_norm=math.nan)


def test_a_refusal_cuts_names_that_are_many_long_or_unprintable() -> None:
    strangers = {f"\x1b[2J{'x' * 10_000}{i}": torch.zeros(1) for i in range(1000)}
    detail = refusal({**good(), **strangers})
    assert len(detail) < 500
    assert detail.isprintable()
    assert "997 more" in detail


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(0, 20), max_size=4),
    magnitude=st.floats(-25, 25),
)
def test_the_norm_is_that_of_all_values_together(
    seed: int, sizes: list[int], magnitude: float
) -> None:
    """Against a loop over values in float64."""
    generator = torch.Generator().manual_seed(seed)
    update = {
        str(i): torch.randn(size, generator=generator) * 10**magnitude
        for i, size in enumerate(sizes)
    }
    total = sum(float(v) ** 2 for tensor in update.values() for v in tensor)
    assert update_norm(update) == pytest.approx(math.sqrt(total), rel=1e-12)


def test_the_norm_of_large_half_precision_values_does_not_overflow() -> None:
    update = {"a": torch.full((100,), 6e4, dtype=torch.float16), "b": torch.full((4,), 3e38)}
    assert update_norm(update) == pytest.approx(6e38, rel=1e-6)


# The longest honest update


def local_plan(method: str) -> RunPlan:
    return RunPlan().replace(
        training={"mode": "local", "local_steps": 3},
        aggregation={"method": method},
        rounds={"warm_start": 0, "count": 4},
    )


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("round", [1, 2])
def test_no_sequence_of_gradients_moves_adam_further_than_the_limit(
    method: str, round: int
) -> None:
    """Against torch's Adam on gradients that grow a thousandfold with every step."""
    plan, begun = local_plan(method), start()
    limit = honest_norm(plan, begun, round)
    assert limit is not None
    names = of_round(plan, round, begun)
    weights = {name: torch.nn.Parameter(begun[name].clone()) for name in names}
    rates = {True: plan.training.head_learning_rate, False: plan.training.learning_rate}
    optimizer = torch.optim.Adam(
        [
            {"params": [weight], "lr": rates[name.startswith("head")]}
            for name, weight in weights.items()
        ]
    )
    for step in range(3):
        for weight in weights.values():
            weight.grad = torch.full_like(weight, 1000.0**step)
        optimizer.step()
    moved = {name: weight.detach() - begun[name] for name, weight in weights.items()}
    assert update_norm(moved) <= limit
    screen(moved, begun, names, max_norm=limit)


def test_the_limit_counts_what_the_round_trains_alone() -> None:
    plan = local_plan("rolora")
    odd, even, both = (
        honest_norm(plan, start(), 1),
        honest_norm(plan, start(), 2),
        honest_norm(local_plan("fedavg"), start(), 1),
    )
    assert odd is not None and even is not None and both is not None
    assert odd < both and even < both and odd != even


def test_rounds_of_sums_have_no_limit_of_local_steps() -> None:
    warm = local_plan("ffa").replace(rounds={"warm_start": 0.4})
    assert honest_norm(warm, start(), 1) is None
    assert honest_norm(warm, start(), 2) is not None
    assert honest_norm(RunPlan(), start(), 3) is None


# The longest honest sum


@pytest.mark.parametrize("epsilon", [0.5, 8.0, math.inf])
@pytest.mark.parametrize("round", [1, 2, 5], ids=["class sums", "head", "LoRA"])
@pytest.mark.parametrize("format", ["float32", "int8"])
def test_the_longest_honest_sum_passes_and_an_absurd_one_does_not(
    round: int, epsilon: float, format: str
) -> None:
    """All units alike, at the bound of their vectors, and the plan's noise on top."""
    plan = RunPlan().replace(
        training={"lora": "always", "lora_rounds": 2},
        adapter={"rank": 2},
        rounds={"count": 5},
        privacy={"epsilon": epsilon, "clip_norm": 0.7},
        wire={"update": format},
    )
    begun, units = start(), 400
    names = of_round(plan, round, begun)
    bound = 1.0 if round == 1 else 0.7
    sigma = public_privacy(plan).of_round(round).noise_multiplier
    generator = torch.Generator().manual_seed(round)
    values = sum(begun[name].numel() for name in names)
    expected = ExpectedUpdates(plan, round, begun)
    for draw in range(100):
        honest = {
            name: units * bound / math.sqrt(values)
            + sigma * bound * torch.randn(SHAPES[name], generator=generator)
            for name in names
        }
        expected.read(pack_state(encode(honest, plan.wire.update, draw)), units)
    absurd = pack_state({name: torch.full(SHAPES[name], 3e38) for name in names})
    expected = ExpectedUpdates(plan.replace(wire={"update": "float32"}), round, begun)
    for declared in (0, units, 10**6):
        with pytest.raises(LoricaError, match="norm") as refused:
            expected.read(absurd, declared)
        assert refused.value.code is Code.UPDATE_REFUSED
    least, some, most = (longest_sum(plan, begun, round)(declared) for declared in (1, units, 0))
    assert least < some < most
