"""Updates in fewer bits: stochastic rounding to bfloat16, float16 or int8, and back.

=========  ================  ===========================================  =====================
format     bytes a value     a value v travels as                         error of a value
=========  ================  ===========================================  =====================
float32    4                 itself                                       none
bfloat16   2                 a neighbour of v with 8 significant bits     < 2^-7 · abs(v)
float16    2                 s · a neighbour of v/s with 11 bits          < 2^-10 · abs(v)
int8       1                 s · a neighbour of v/s among whole numbers   < max abs / 127
=========  ================  ===========================================  =====================

s is one scale per tensor, a float32 of shape (1,) that travels as the tensor ``NAME/scale``.
With float16 it is a power of two that puts the largest value near 2^15, so that neither large
sums overflow nor small ones lose bits; with int8 the largest value becomes 127, and s has 16
significant bits, so that decoding is exact in float32. float16 errs by up to 2^-39 of the
tensor's largest value instead where that is more.

Of the two neighbours the nearer one is the likelier, so that the mean is v: the error is unbiased
and averages out over sites. Of noised values with standard deviation σ·C, int8 errs by about
0.02 σ·C (``make bench NAME=wire``).

Nothing is compressed on top. Of noised sums zstd (level 3) leaves 87% of int8, 91% of float16 and
78% of bfloat16. It leaves 59% of float32, whose last bits are 0 (noisy sums lie on a grid,
:mod:`lorica.client.mechanism.noise`), but plain bfloat16 is smaller than that. A dependency and a
decoder for hostile input are not worth the rest.

Formal guarantee:
    :func:`encode` reads an update whose every value was noised and charged
    (:mod:`lorica.client.mechanism.dp_sgd`, :mod:`lorica.client.mechanism.frozen_features`) and
    coins that do not depend on the records. It is post-processing: it costs no ε and weakens no
    guarantee, scales included, since they follow from noised values. The coins need not be secret
    for that, so they come from a public seed (run, round, site, tensor): the site's source of noise
    could give them as well, but then the noise would depend on the format. Sites' names differ, so
    their errors are independent.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from lorica.common.errors import Code, LoricaError

Format = Literal["float32", "bfloat16", "float16", "int8"]

SCALE = "/scale"
"""What a scale's name adds to its tensor's."""

DTYPES: dict[Format, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}

LARGEST_ERROR: dict[Format, float] = {
    "float32": 0.0,
    "bfloat16": 2.0**-7,
    "float16": 2.0**-10,
    "int8": 1 / 126,
}
"""Largest error of a value over the largest value of its tensor (for int8, whose scale is rounded
up, a little more than 1/127)."""

LARGEST = 2.0**100
"""Largest absolute value that is rounded; also the largest scale."""

LEAST_SCALE = 2.0**-120
"""Of tensors of zeros, too."""

_SCALED: tuple[Format, ...] = ("float16", "int8")
_SCALE_BITS = 16
_FLOATS: dict[Format, tuple[int, int]] = {"bfloat16": (7, -126), "float16": (10, -14)}
# bits behind the leading one, exponent of the least normal number


def encode(
    update: Mapping[str, torch.Tensor], format: Format, *seed: int | str
) -> dict[str, torch.Tensor]:
    """The update as it travels.

    Args:
        update: noised values, float32, of any shapes.
        format: the plan's ``wire.update``; "float32" changes nothing.
        seed: what the public coins are for: run, round and site.

    Raises:
        LoricaError: LOR-502 when a value is not finite or above :data:`LARGEST`.
    """
    if format == "float32":
        return dict(update)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in update.items():
        values = tensor.detach().to("cpu", torch.float64).numpy()
        largest = float(np.abs(values).max(initial=0.0))
        if not largest <= LARGEST:  # also when it is NaN
            raise _refused(f"The update's '{name}' has values that {format} cannot hold.")
        coins = _coins(values.shape, *seed, name)
        scale = _scale(largest, format) if format in _SCALED else 1.0
        rounded = torch.from_numpy(_rounded(values / scale, format, coins))
        found[name] = rounded.to(DTYPES[format])
        if format in _SCALED:
            found[name + SCALE] = torch.tensor([scale], dtype=torch.float32)
    return found


def decode(
    held: Mapping[str, torch.Tensor], format: Format, shapes: Mapping[str, torch.Size]
) -> dict[str, torch.Tensor]:
    """The update that :func:`encode` made of one, in float32.

    Args:
        held: what came; hostile.
        format: the plan's ``wire.update``.
        shapes: of exactly the tensors that the round trains.

    Raises:
        LoricaError: LOR-502 for tensors of another format or shape, and for scales that are
            missing, of another form, or outside [LEAST_SCALE, LARGEST]. Tensors that ``shapes``
            does not name are passed on as they came, for the screening to refuse.
    """
    rest = dict(held)
    found: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        tensor = rest.pop(name, None)
        if tensor is None:
            continue  # for the screening to refuse, with its scale
        if tensor.dtype != DTYPES[format] or tensor.shape != shape:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise _refused(
                f"The update's '{name}' is {kind} of shape {tuple(tensor.shape)}, expected "
                f"{format} of shape {tuple(shape)}."
            )
        value = tensor.to(torch.float32)
        if format in _SCALED:
            value = value * _checked_scale(name, rest.pop(name + SCALE, None))
        found[name] = value
    return found | rest


def _checked_scale(name: str, scale: torch.Tensor | None) -> float:
    if scale is None:
        raise _refused(f"The update's '{name}' has no scale.")
    if scale.dtype != torch.float32 or scale.shape != (1,):
        raise _refused(f"The scale of the update's '{name}' is not one float32 number.")
    value = float(scale)
    if not LEAST_SCALE <= value <= LARGEST:
        raise _refused(f"The scale of the update's '{name}' is {value:.4g}, out of bounds.")
    return value


def _scale(largest: float, format: Format) -> float:
    """s of a tensor whose largest absolute value is ``largest``."""
    if format == "float16":
        return max(math.ldexp(1.0, math.frexp(largest)[1] - 15), LEAST_SCALE)
    mantissa, exponent = math.frexp(largest / 127)
    up = math.ceil(math.ldexp(mantissa, _SCALE_BITS))
    return max(math.ldexp(up, exponent - _SCALE_BITS), LEAST_SCALE)


def _rounded(
    values: npt.NDArray[np.float64], format: Format, coins: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Every value as one of its two neighbours in the format, the nearer the likelier.

    Values that the format holds stay as they are: a coin is at most 1 - 2^-32 and so never
    lifts a whole number to the next.
    """
    if format == "int8":
        return np.floor(values + coins)
    bits, least = _FLOATS[format]
    exponent = np.maximum(np.frexp(values)[1] - 1, least) - bits
    whole = np.floor(np.ldexp(values, -exponent) + coins)
    return np.ldexp(whole, exponent)


def _coins(shape: tuple[int, ...], *seed: int | str) -> npt.NDArray[np.float64]:
    """Uniform multiples of 2^-32 in [0, 1), the same everywhere for the same seed."""
    key = hashlib.sha256(json.dumps(["lorica rounding", *seed]).encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key)))
    words = generator.integers(0, 2**32, size=shape, dtype=np.uint32)
    return words.astype(np.float64) * 2.0**-32


def _refused(detail: str) -> LoricaError:
    return LoricaError(Code.UPDATE_REFUSED, detail)
