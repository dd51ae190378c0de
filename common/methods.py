"""What each aggregation method asks of sites: which parts of the adapter they train and send.

The rules themselves are the coordinator's (``lorica.server.aggregation``); a site needs only
this table. An adapter state maps names to tensors:

- ``"<module path>.lora_A.weight"``: A, shape (r, in)
- ``"<module path>.lora_B.weight"``: B, shape (out, r)
- ``"head.weight"``, ``"head.bias"``: shape (labels, hidden), (labels,)
- ``"head.center"``: shape (hidden,), taken from every feature; never trained
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Part(Enum):
    """The kinds of tensors in an adapter state."""

    A = "lora_A"
    B = "lora_B"
    HEAD = "head"
    CENTER = "center"


TRAINED_PARTS: dict[str, frozenset[Part]] = {
    "fedavg": frozenset({Part.A, Part.B, Part.HEAD}),
    "ffa": frozenset({Part.B, Part.HEAD}),
    "fedsvd": frozenset({Part.B, Part.HEAD}),
}
"""Method -> the parts that sites train and send; the rest stays as the coordinator sent it."""


def part_of(name: str) -> Part:
    """Which part the tensor ``name`` of an adapter state belongs to.

    Raises:
        KeyError: the name is none of an adapter's.
    """
    if name.endswith(".lora_A.weight"):
        return Part.A
    if name.endswith(".lora_B.weight"):
        return Part.B
    if name in ("head.weight", "head.bias"):
        return Part.HEAD
    if name == "head.center":
        return Part.CENTER
    raise KeyError(name)


def is_trained(method: str, name: str) -> bool:
    """Whether sites train the tensor ``name`` under ``method``."""
    return part_of(name) in TRAINED_PARTS[method]


def factor_pairs(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """LoRA pairs among ``names``: module path -> (name of A, name of B), sorted by path."""
    paths = sorted(
        name.removesuffix(".lora_A.weight") for name in names if name.endswith(".lora_A.weight")
    )
    return {path: (f"{path}.lora_A.weight", f"{path}.lora_B.weight") for path in paths}
