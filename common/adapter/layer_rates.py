"""Layer-wise learning rates: the deeper a layer lies, the smaller its steps.

The highest adapted layer has the whole rate, a layer d below it ``decay**d`` of it: what lower
layers know is more general, and should move less. The head has its own rate. Rates are factors of
steps that are taken after the noise, so they are post-processing and cost no privacy.

Source: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification"
(arXiv 1801.06146), section 3.2, "discriminative fine-tuning".
"""

from __future__ import annotations

import re
from collections.abc import Collection

from lorica.common.plan.tensors import Part, part_of

_LAYER = re.compile(r"\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """Index of the layer that a tensor of an adapter state belongs to; None for the head's."""
    if part_of(name) in (Part.HEAD, Part.CENTER):
        return None
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def layer_factors(names: Collection[str], decay: float) -> dict[str, float]:
    """The factor of every tensor's rate, in (0, 1].

    Args:
        names: all of an adapter's tensors; those of the highest layer among them have 1, and so
            has the head.
        decay: factor from a layer to the one below, in (0, 1].
    """
    layers = {name: layer_of(name) for name in names}
    top = max((layer for layer in layers.values() if layer is not None), default=0)
    return {n: 1.0 if layer is None else decay ** (top - layer) for n, layer in layers.items()}
