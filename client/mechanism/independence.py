"""A probe of the one thing that DP-SGD asks of a model: that it does not join records.

One record of a batch is changed; no other record's output may move. Lists of layers that are known
to couple records are not enough for a model that nobody has looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lorica.common.backbone.loading import Backbone, made_up_inputs
from lorica.common.errors import Code, LoricaError

TOLERANCE = 1e-4
"""Largest change of another record's output, relative to the largest output, that counts as
rounding: float32 kernels may sum in another order."""

PROBED = frozenset({"bert", "gpt2", "llama", "vit", "convnext", "resnet"})
"""Kinds of models (``config.model_type``) whose gradients the tests compare record by record."""


@torch.no_grad()
def records_are_independent(
    model: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]
) -> bool:
    """Whether changing a record leaves the outputs of the others as they are.

    Args:
        model: arguments (n, …) to outputs (n, …), as it will be used in training.
        inputs: arguments of at least two records, the record first. The first that has floats, or
            else the first, is changed; integers only by reordering, so that they stay valid.
    """
    floats = [place for place, given in enumerate(inputs) if given.is_floating_point()]
    place = floats[0] if floats else 0
    before = model(*inputs)
    changed = inputs[place].clone()
    changed[0] = 1.0 - 3.0 * changed[0] if floats else _reordered(changed)
    after = model(*inputs[:place], changed, *inputs[place + 1 :])
    scale = float(before.abs().max()) + 1e-12
    return bool((before[1:] - after[1:]).abs().max() <= TOLERANCE * scale)


def _reordered(ids: torch.Tensor) -> torch.Tensor:
    """Other integers for the first record, from those of the batch: another row that differs."""
    for other in [*ids[1:], ids[0].flip(0)]:
        if not torch.equal(other, ids[0]):
            return other
    return ids[0].roll(1)


def require_independence(model: Callable[..., torch.Tensor], backbone: Backbone) -> None:
    """Return if the backbone's kind is known, or the probe of made-up records finds nothing.

    No private record is looked at: the answer tells something of the model alone.

    Args:
        model: as of :func:`records_are_independent`, made of the backbone.
        backbone: names the kind and says what the model reads.

    Raises:
        LoricaError: LOR-404 the model joins records.
    """
    kind = str(backbone.model.config.model_type)
    if kind not in PROBED and not records_are_independent(
        model, tuple(made_up_inputs(backbone).values())
    ):
        raise LoricaError(
            Code.PRIVACY_UNSAFE_MODEL,
            f"A model of the kind '{kind}' gives a record another output when another record of "
            "the batch changes: its gradients cannot be bounded record by record.",
            mend="Use a backbone without layers that join the records of a batch.",
        )
