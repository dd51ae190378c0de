"""Which part of an adapter a tensor is, told by its name."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Part(Enum):
    """The kinds of tensors in an adapter state."""

    A = "lora_A"
    B = "lora_B"
    RESIDUAL = "residual"
    BIAS = "bias"
    HEAD = "head"
    CENTER = "center"


def part_of(name: str) -> Part:
    """Which part the tensor ``name`` of an adapter state belongs to.

    Raises:
        KeyError: the name is none of an adapter's.
    """
    if name.endswith(".lora_A.weight"):
        return Part.A
    if name.endswith(".lora_B.weight"):
        return Part.B
    if name.endswith(".residual"):
        return Part.RESIDUAL
    if name == "head.center":
        return Part.CENTER
    if name.startswith("head."):
        return Part.HEAD
    if name.endswith(".bias"):
        return Part.BIAS
    raise KeyError(name)


def factor_pairs(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """LoRA pairs among ``names``: module path -> (name of A, name of B), sorted by path."""
    paths = sorted(
        name.removesuffix(".lora_A.weight") for name in names if name.endswith(".lora_A.weight")
    )
    return {path: (f"{path}.lora_A.weight", f"{path}.lora_B.weight") for path in paths}


def residual_name(path: str) -> str:
    """Name of the residual of the LoRA module at ``path``."""
    return f"{path}.residual"
