"""Rounded updates: unbiased, within the stated error, and read back only in one form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.adapter.state import State, pack_state, unpack_state
from lorica.common.errors import Code, LoricaError
from lorica.common.wire.rounding import (
    DTYPES,
    LARGEST,
    LARGEST_ERROR,
    LEAST_SCALE,
    SCALE,
    Format,
    decode,
    encode,
)

ROUNDED: list[Format] = ["bfloat16", "float16", "int8"]
SCALED: list[Format] = ["float16", "int8"]


def update(std: float = 1.0) -> State:
    generator = torch.Generator().manual_seed(3)
    return {
        "head.weight": std * torch.randn(7, 32, generator=generator),
        "head.bias": 1e-3 * std * torch.randn(7, generator=generator),
    }


def shapes(state: State) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def there_and_back(state: State, format: Format, *seed: int | str) -> State:
    blob = pack_state(encode(state, format, *seed))
    return decode(unpack_state(blob), format, shapes(state))


def refusal(held: State, format: Format) -> str:
    with pytest.raises(LoricaError) as caught:
        decode(held, format, shapes(update()))
    assert caught.value.code is Code.UPDATE_REFUSED
    return str(caught.value)


def test_float32_is_sent_as_it_is() -> None:
    assert pack_state(encode(update(), "float32", "r", 1, "a")) == pack_state(update())


@pytest.mark.parametrize("format", ROUNDED)
@pytest.mark.parametrize("std", [1e-30, 1e-6, 1.0, 1e6, 1e28])
def test_what_is_read_back_is_near_and_float32(format: Format, std: float) -> None:
    """1e6 is beyond float16's own range, 1e-6 among its smallest numbers."""
    given_ = update(std)
    back = there_and_back(given_, format, "r", 1, "a")
    for name, tensor in given_.items():
        assert back[name].dtype == torch.float32
        error = (back[name] - tensor).abs()
        assert float(error.max()) <= LARGEST_ERROR[format] * float(tensor.abs().max())
        if format != "int8":
            floor = 2.0**-39 * float(tensor.abs().max()) if format == "float16" else 0.0
            assert bool((error <= LARGEST_ERROR[format] * tensor.abs() + floor).all())
        assert not torch.equal(back[name], tensor)


@pytest.mark.parametrize("format", ROUNDED)
def test_the_mean_over_many_rounds_is_the_update(format: Format) -> None:
    """Every value's mean over n rounds lies within 5.5 of its own standard errors."""
    given_, rounds = update(), 400
    reads = [there_and_back(given_, format, "r", round, "a") for round in range(rounds)]
    for name, tensor in given_.items():
        stack = torch.stack([read[name] for read in reads]).double()
        bias = stack.mean(0) - tensor.double()
        if format == "int8":
            step = float(encode(given_, format, "r", 0, "a")[name + SCALE])
            spread = torch.full_like(bias, step / 2)
        else:
            spread = LARGEST_ERROR[format] * tensor.double().abs() / 2
        assert bool((bias.abs() <= 5.5 * spread / math.sqrt(rounds)).all())
        tied = bias.abs().sum() / (spread / math.sqrt(rounds)).sum()
        assert float(tied) < 1.0
        overall = float(bias.sum() / (spread.square().sum() / rounds).sqrt())
        assert abs(overall) < 5.0


@pytest.mark.parametrize("format", ROUNDED)
@settings(max_examples=150, deadline=None)
@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_any_finite_update_survives_and_what_a_format_holds_is_kept(
    format: Format, values: list[float]
) -> None:
    state = {"t": torch.tensor(values, dtype=torch.float32)}
    back = there_and_back(state, format, "r", 1, "a")
    assert bool(back["t"].isfinite().all())
    largest = max(float(state["t"].abs().max()), LEAST_SCALE * 127)
    assert float((back["t"] - state["t"]).abs().max()) <= LARGEST_ERROR[format] * largest
    if format == "bfloat16":  # no scale: what was rounded once stays
        assert torch.equal(there_and_back(back, format, "r", 2, "a")["t"], back["t"])


@pytest.mark.parametrize("format", ROUNDED)
def test_zeros_stay_zeros(format: Format) -> None:
    """The rows that a site of lower rank fills up must not become noise."""
    state = {"t": torch.zeros(3, 4), "none": torch.zeros(0, 4)}
    state["part"] = torch.tensor([0.0, 3.7, 0.0])
    back = there_and_back(state, format, "r", 1, "a")
    assert torch.equal(back["t"], state["t"]) and back["none"].shape == (0, 4)
    assert back["part"][0] == back["part"][2] == 0.0


@pytest.mark.parametrize("format", ROUNDED)
def test_coins_are_public_and_differ_by_run_round_site_and_tensor(format: Format) -> None:
    tensor = torch.randn(50, generator=torch.Generator().manual_seed(1))
    state = {"a": tensor, "b": tensor}
    first = there_and_back(state, format, "r", 1, "a")
    again = there_and_back(state, format, "r", 1, "a")
    assert torch.equal(first["a"], again["a"])
    assert not torch.equal(first["a"], first["b"])
    for seed in (("r2", 1, "a"), ("r", 2, "a"), ("r", 1, "b")):
        assert not torch.equal(first["a"], there_and_back(state, format, *seed)["a"])


@pytest.mark.parametrize("format", ROUNDED)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2 * LARGEST, -2 * LARGEST])
def test_what_a_format_cannot_hold_is_refused_at_the_site(format: Format, value: float) -> None:
    state = update()
    state["head.weight"][2, 3] = value
    with pytest.raises(LoricaError) as caught:
        encode(state, format, "r", 1, "a")
    assert caught.value.code is Code.UPDATE_REFUSED


def test_an_int8_update_is_a_quarter_of_float32() -> None:
    state = {"head.weight": torch.randn(77, 384), "head.bias": torch.randn(77)}
    small = len(pack_state(encode(state, "int8", "r", 1, "a")))
    assert small < 0.26 * len(pack_state(state))


@pytest.mark.parametrize("format", SCALED)
@pytest.mark.parametrize(
    "scale",
    [math.nan, math.inf, -math.inf, -0.5, 0.0, -0.0, 2 * LARGEST, 3e38, LEAST_SCALE / 2, 1e-45],
)
def test_a_hostile_scale_is_refused(format: Format, scale: float) -> None:
    held = encode(update(), format, "r", 1, "a")
    held["head.weight" + SCALE] = torch.tensor([scale], dtype=torch.float32)
    assert "scale" in refusal(held, format)


FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "float64": lambda scale: scale.double(),
    "float16": lambda scale: scale.half(),
    "no axis": lambda scale: scale[0],
    "two": lambda scale: scale.repeat(2),
    "none": lambda scale: scale[:0],
    "per row": lambda scale: scale.repeat(7, 1),
}


@pytest.mark.parametrize("format", SCALED)
@pytest.mark.parametrize("form", FORMS)
def test_a_scale_of_another_form_is_refused(format: Format, form: str) -> None:
    held = encode(update(), format, "r", 1, "a")
    held["head.bias" + SCALE] = FORMS[form](held["head.bias" + SCALE])
    assert "not one float32 number" in refusal(held, format)


@pytest.mark.parametrize("format", SCALED)
def test_a_missing_scale_is_refused(format: Format) -> None:
    held = encode(update(), format, "r", 1, "a")
    del held["head.bias" + SCALE]
    assert "has no scale" in refusal(held, format)


@pytest.mark.parametrize("expected", DTYPES)
@pytest.mark.parametrize("sent", [*DTYPES.values(), torch.float64, torch.uint8, torch.bool])
def test_another_number_format_is_refused(expected: Format, sent: torch.dtype) -> None:
    if sent == DTYPES[expected]:
        return
    held = encode(update(), expected, "r", 1, "a")
    held["head.weight"] = held["head.weight"].to(sent)
    assert expected in refusal(held, expected)


@pytest.mark.parametrize("format", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (32, 7), (7, 33), (1, 7, 32)])
def test_another_shape_is_refused_before_it_is_read(format: Format, shape: tuple[int, ...]) -> None:
    held = encode(update(), format, "r", 1, "a")
    held["head.weight"] = torch.zeros(shape, dtype=DTYPES[format])
    assert "(7, 32)" in refusal(held, format)


@pytest.mark.parametrize("format", DTYPES)
def test_what_is_not_expected_is_left_to_the_screening(format: Format) -> None:
    held = encode(update(), format, "r", 1, "a")
    extra = {"head.weight/scale/scale": torch.ones(1), "other": torch.ones(2), "": torch.ones(1)}
    if format not in SCALED:
        extra["head.bias" + SCALE] = torch.ones(1)
    found = decode(held | extra, format, shapes(update()))
    assert found.keys() == update().keys() | extra.keys()


@pytest.mark.parametrize("format", SCALED)
def test_a_scale_without_its_tensor_is_left_to_the_screening(format: Format) -> None:
    held = encode(update(), format, "r", 1, "a")
    del held["head.bias"]
    assert "head.bias" + SCALE in decode(held, format, shapes(update()))
