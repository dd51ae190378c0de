"""Whether an exported model computes what the adapter does, on records of all lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorica.common.errors import Code, LoricaError
from lorica.common.saved.exported.samples import models_language
from lorica.common.tasks.base import Task
from lorica.common.tasks.fusion.inputs import WithTable
from lorica.common.tasks.inputs import Inputs
from lorica.common.tasks.model import AdaptedModel

TOLERANCE = 1e-4
"""Largest difference of an output, where outputs are at most 1; of larger ones, in proportion."""

Compute = Callable[[tuple[torch.Tensor, ...]], torch.Tensor]
"""What an exported model makes of the arguments of a padded batch: outputs (n, …)."""


@dataclass(frozen=True)
class Agreement:
    """How far two models' outputs are apart on the same records."""

    records: int
    largest: float
    """Largest difference of an output."""
    size: float
    """Largest absolute output of the adapter."""
    same: float | None
    """Share of answers (of tokens, where these are answered) with the same largest output; None
    where an answer is one number."""

    @property
    def sentence(self) -> str:
        """Both figures in a sentence."""
        answers = "" if self.same is None else f", and {self.same:.1%} of the answers are the same"
        return (
            f"compared with the adapter on {self.records} records, outputs of up to "
            f"{self.size:.3g} differ by at most {self.largest:.1e}{answers}"
        )


def outputs_of(
    task: Task, model: AdaptedModel, inputs: Inputs, *, together: int = 1
) -> list[torch.Tensor]:
    """The model's outputs for every record, (C,) or (T, C), without padding; of a model of
    language, which has none that are one record's, its states (T, H).

    Args:
        task, model, inputs: the task's model, and what it reads.
        together: records padded in one batch.
    """
    return outputs_by(lambda given: forward(task, model, given), model, inputs, together=together)


@torch.no_grad()
def outputs_by(
    compute: Compute, model: AdaptedModel, inputs: Inputs, *, together: int
) -> list[torch.Tensor]:
    """The same by any way to compute what ``model`` does."""
    found = []
    for first in range(0, len(inputs), together):
        rows = np.arange(first, min(first + together, len(inputs)))
        outputs = compute(arguments(inputs, rows))
        for row, output in zip(rows, outputs, strict=True):
            length = len(output) if model.vector else int(inputs.lengths[row])
            found.append(output if model.vector else output[:length])
    return found


def arguments(inputs: Inputs, rows: np.ndarray) -> tuple[torch.Tensor, ...]:
    """What is computed from: ids and mask, or pixels; and the table's numbers, if there are."""
    beside = (inputs.table_of(rows),) if isinstance(inputs, WithTable) else ()
    return (*inputs.collate(rows), *beside)


class GivenTable:
    """Stands for a data set whose table's numbers are those given."""

    def __init__(self, table: torch.Tensor) -> None:
        self._table = table

    def table_of(self, rows: np.ndarray) -> torch.Tensor:
        """All of them."""
        return self._table


def forward(task: Task, model: AdaptedModel, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Outputs of the arguments that :func:`arguments` gives; of a model of language, states."""
    table = given[-1] if task.traits.table else None
    read = given[:-1] if table is not None else given
    features = model.features(model.pooled_of_ids(*read))
    if models_language(task.kind):
        return features
    beside = GivenTable(table) if table is not None else None
    return model.outputs(features, beside, np.arange(0))  # type: ignore[arg-type]


def compare(wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> Agreement:
    """How far outputs are apart; both of the same records, in their order."""
    ours = torch.cat([output.reshape(-1, output.shape[-1]) for output in wanted]).double()
    theirs = torch.cat([output.reshape(-1, output.shape[-1]) for output in found]).double()
    difference = (ours - theirs).abs().max()
    same = None
    if ours.shape[1] > 1:
        same = float((ours.argmax(1) == theirs.argmax(1)).double().mean())
    return Agreement(len(wanted), float(difference), float(ours.abs().max()), same)


def require_agreement(found: Agreement) -> Agreement:
    """Return it if it is within :data:`TOLERANCE`. Raises LOR-209, also where an output is none."""
    if not found.largest <= TOLERANCE * max(1.0, found.size):
        raise LoricaError(
            Code.EXPORT_DIFFERS,
            f"{found.sentence.capitalize()}; {TOLERANCE:g} in proportion are allowed. Nothing was "
            "written.",
        )
    return found
