"""An adapter made ready for use: merged into its weights, and records in few batches.

Training computes a record in shapes that follow from it alone, to the bit, because neighbours must
not be told from each other. Whoever uses a model knows all records of the batch, so here a batch
may have records of several lengths, padded to the longest, where that is cheaper, and short texts
share rows (:mod:`lorica.common.saved.packed`). A record's outputs then differ by float32's rounding
(about 1e-6) from those it has alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lorica.common.backbone.loading import Backbone
from lorica.common.backbone.precision import number_format
from lorica.common.cache.batching import BATCH_OVERHEAD, TOKEN_BUDGET
from lorica.common.plan.course import Precision
from lorica.common.saved.exported.fold import fold
from lorica.common.saved.exported.folded import adapted_model, head_model
from lorica.common.saved.folder import SavedAdapter
from lorica.common.saved.packed import LONGEST, Packing, packing_of, packs
from lorica.common.tasks.base import Prediction, Task
from lorica.common.tasks.inputs import Encoded, Inputs
from lorica.common.tasks.model import AdaptedModel
from lorica.common.tasks.shapes import padded


@dataclass(frozen=True)
class ReadyModel:
    """A model that is used and no longer trained."""

    task: Task
    model: AdaptedModel
    packing: Packing | None
    """How short texts share rows; None where they do not."""

    def pooled(self, encoded: Inputs) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """What the model pools of all records, batch by batch: rows, and theirs."""
        rows = np.arange(len(encoded))
        if self.packing is not None and isinstance(encoded, Encoded):
            short = encoded.lengths <= LONGEST
            for few in packs(encoded.lengths[short], TOKEN_BUDGET):
                chosen = rows[short][few]
                yield chosen, self.packing.pooled(self.model, encoded, chosen)
            rows = rows[~short]
        for few in use_batches(encoded.sizes[rows], encoded.limit):
            yield rows[few], self.model.pooled_of_ids(*encoded.collate(rows[few]))

    @torch.inference_mode()
    def answers(self, encoded: Inputs) -> list[Prediction]:
        """The task's predictions for all records, in their order."""
        found: dict[int, Prediction] = {}
        for rows, pooled in self.pooled(encoded):
            outputs = self.model.outputs(self.model.features(pooled), encoded, rows)
            answers = self.task.predictions(outputs, encoded, rows)
            found.update(zip(rows.tolist(), answers, strict=True))
        return [found[row] for row in range(len(encoded))]


def ready_model(
    saved: SavedAdapter, backbone: Backbone, precision: Precision = "float32"
) -> ReadyModel:
    """The adapter's model in eval mode: the adapter is added to the weights it changes, which are
    the model's own then, unless the backbone is held in fewer bits, which no sum fits into.

    Args:
        saved: the adapter.
        backbone: its own, which stays as it is.
        precision: what the encoder computes in. In bfloat16, linear weights are held in it, too;
            norms, softmax and head stay float32.

    Raises:
        LoricaError: LOR-205 the adapter does not fit, LOR-208 no bfloat16 units.
    """
    numbers = number_format(precision)
    task, model = adapted_model(saved, backbone)  # whose every tensor has to be there, and fit
    if backbone.quantize == "none":
        folding = fold(saved, backbone)
        task, model = head_model(saved, folding, folding.changed)
    packing = packing_of(model, backbone.max_length)  # tried in float32, whatever comes next
    model.numbers = numbers
    if numbers != torch.float32:
        for module in model.encoder.modules():
            if type(module) is nn.Linear:
                _held_in(module, numbers)
    return ReadyModel(task, model.requires_grad_(False), packing)


def _held_in(module: nn.Linear, numbers: torch.dtype) -> None:
    module.weight = nn.Parameter(module.weight.to(numbers), requires_grad=False)
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.to(numbers), requires_grad=False)


def use_batches(sizes: np.ndarray, limit: int, budget: int = TOKEN_BUDGET) -> Iterator[np.ndarray]:
    """Rows of batches that cost least together: each the tokens it has with padding, and
    ``BATCH_OVERHEAD``.

    Args:
        sizes: of all records, shape (N, d), as of :class:`~lorica.common.tasks.inputs.Inputs`.
            Records that differ in another size than the first never share a batch.
        limit: the records' largest canonical length.
        budget: tokens of the largest batch; one record may have more.

    Yields:
        int64 (R,); every row comes once, the longest first.
    """
    if not len(sizes):
        return
    lengths = padded(sizes, limit)
    for kind in np.unique(lengths[:, 1:], axis=0)[::-1]:
        rows = np.flatnonzero((lengths[:, 1:] == kind).all(1))
        order = rows[np.argsort(-lengths[rows, 0], kind="stable")]
        at = 0
        for end in _ends(lengths[order, 0], budget):
            while at < end:
                most = max(1, budget // int(lengths[order[at], 0]))
                taken = min(end, at + most)
                yield order[at:taken]
                at = taken


def _ends(lengths: np.ndarray, budget: int) -> list[int]:
    """Where falling lengths are cut into groups, each as wide as its first, by least cost."""
    values, counts = np.unique(-lengths, return_counts=True)
    widths, ends = (-values).tolist(), np.cumsum(counts).tolist()
    starts = [0, *ends[:-1]]
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the first groups; where the last begins
    for last in range(len(widths)):
        ways = []
        for first in range(last + 1):
            count, width = ends[last] - starts[first], widths[first]
            batches = -(-count // max(1, budget // width))
            ways.append((best[first][0] + count * width + batches * BATCH_OVERHEAD, first))
        best.append(min(ways))
    found = []
    at = len(widths)
    while at:
        found.append(ends[at - 1])
        at = best[at][1]
    return found[::-1]
