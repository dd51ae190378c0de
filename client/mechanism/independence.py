"""A probe of the one thing that DP-SGD asks of a model: that it does not join records.

One record of a batch is changed; no other record's output may move. Lists of layers that are known
to couple records are not enough for a model that nobody has looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from lorica.common.backbone.loading import Backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.tasks.images.pixels import pixels_of

TOLERANCE = 1e-4
"""Largest change of another record's output, relative to the largest output, that counts as
rounding: float32 kernels may sum in another order."""

PROBED = frozenset({"bert", "gpt2", "llama", "vit", "convnext", "resnet"})
"""Kinds of models (``config.model_type``) whose gradients the tests compare record by record."""

_COUNT, _TOKENS, _SIDE = 3, 8, 64  # of made-up records: how many, texts' length, images' pixels


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


def made_up_inputs(backbone: Backbone) -> tuple[torch.Tensor, ...]:
    """What a model of this backbone reads of three made-up records, the same at every call.

    Returns:
        ids and mask, int64, (3, T); of a model of images pixels, float32, (3, 3, S, S).
    """
    random = np.random.default_rng(0)
    if backbone.processor is not None:
        images = list(random.integers(0, 256, (_COUNT, _SIDE, _SIDE, 3), dtype=np.uint8))
        blank = [""] * _COUNT
        return pixels_of(backbone, Records(blank, blank, blank, blank, images)).collate(
            range(_COUNT)
        )
    shape = _COUNT, min(_TOKENS, backbone.max_length)
    words = backbone.model.get_input_embeddings().num_embeddings
    ids = torch.from_numpy(random.integers(0, words, shape))
    return ids, torch.ones_like(ids)


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
    if kind not in PROBED and not records_are_independent(model, made_up_inputs(backbone)):
        raise LoricaError(
            Code.PRIVACY_UNSAFE_MODEL,
            f"A model of the kind '{kind}' gives a record another output when another record of "
            "the batch changes: its gradients cannot be bounded record by record.",
            mend="Use a backbone without layers that join the records of a batch.",
        )
