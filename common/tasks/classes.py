"""What is common to tasks that give each record one class: loss, metrics, released counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

from lorica.common.data.names.plan_labels import label_indices
from lorica.common.data.records import Records
from lorica.common.plan import RunPlan
from lorica.common.tasks.base import Metrics, Released, SiteMetrics, Task, TensorTargets
from lorica.common.tasks.inputs import Inputs
from lorica.common.tasks.labels import labels_of
from lorica.common.tasks.predictions import ClassPrediction

LOSS_BOUND = 8.0
"""Cross-entropy of a record is cut at this many nats, and divided by it, before it is summed."""

BAND = 1.96
"""Standard deviations of a 95 % band."""

_LOSS, _PREDICTED, _TRUE = 0, 1, 2  # columns of judgements


def loss_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over records; logits (n, C), labels (n,) int64."""
    return functional.cross_entropy(logits, labels, reduction="sum")


class Classes(Task):
    """Softmax over the plan's labels, one of which every record has.

    Judgements: cross-entropy in nats (NaN where a logit is not finite), predicted and true class.
    """

    closed_head = True
    judgement_width = 3

    def check(self, records: Records, *, where: str) -> None:
        label_indices(records, self.plan.task.labels, where=where)

    def with_labels(self, parts: Sequence[Records]) -> RunPlan:
        return labels_of(self.plan, (name for part in parts for name in part.labels))

    def strata(self, records: Records) -> list[str]:
        return records.labels

    def targets(self, records: Records, inputs: Inputs) -> TensorTargets:
        found = label_indices(records, self.plan.task.labels, where="The data")
        return TensorTargets(torch.tensor(found, dtype=torch.int64))

    def losses(
        self, outputs: torch.Tensor, targets: TensorTargets, rows: np.ndarray
    ) -> torch.Tensor:
        return functional.cross_entropy(outputs, targets.of(rows), reduction="none")

    def loss_sum(
        self, outputs: torch.Tensor, targets: TensorTargets, rows: np.ndarray
    ) -> torch.Tensor:
        return loss_sum(outputs, targets.of(rows))

    def residuals(
        self, outputs: torch.Tensor, targets: TensorTargets, rows: np.ndarray
    ) -> torch.Tensor:
        """softmax(outputs) - onehot(y)."""
        found = torch.softmax(outputs, dim=1)
        found[torch.arange(len(rows)), targets.of(rows)] -= 1.0
        return found

    def judge(
        self, outputs: torch.Tensor, targets: TensorTargets, rows: np.ndarray
    ) -> torch.Tensor:
        labels = targets.of(rows)
        loss = functional.cross_entropy(outputs.double(), labels, reduction="none")
        loss = torch.where(outputs.isfinite().all(1), loss, torch.nan)
        return torch.stack([loss, outputs.argmax(1).double(), labels.double()], dim=1)

    def metrics(self, table: torch.Tensor) -> Metrics:
        """Accuracy, macro F1 over the labels that occur, and mean cross-entropy in nats."""
        count = len(self.plan.task.labels)
        predicted, labels = table[:, _PREDICTED].long(), table[:, _TRUE].long()
        pairs = torch.bincount(labels * count + predicted, minlength=count * count)
        confusion = pairs.reshape(count, count).double()
        hits = confusion.diagonal()
        occurs = confusion.sum(1) > 0
        f1 = 2 * hits / (confusion.sum(0) + confusion.sum(1)).clamp(min=1)
        return Metrics(
            {
                "accuracy": float(hits.sum() / confusion.sum()),
                "macro_f1": float(f1[occurs].mean()),
                "loss": float(table[:, _LOSS].mean()),
            }
        )

    def released(self) -> list[Released]:
        """Correct, loss / ``LOSS_BOUND``: in [0, 1]. A unit's shares of labels are at least 0 and
        sum to 1, so their L2 norm is at most 1, and so is that of its correct shares by label."""
        wanted, count = self.plan.privacy.evaluation_metrics, len(self.plan.task.labels)
        parts = [Released(name) for name in ("accuracy", "loss") if name in wanted]
        if "per_label" in wanted:
            parts += [Released("units by label", count), Released("correct by label", count)]
        return parts

    def contributions(self, table: torch.Tensor) -> torch.Tensor:
        """A record whose logits are not finite counts as wrong with the full loss."""
        wanted, count = self.plan.privacy.evaluation_metrics, len(self.plan.task.labels)
        labels, sane = table[:, _TRUE].long(), table[:, _LOSS].isfinite()
        correct = ((table[:, _PREDICTED] == table[:, _TRUE]) & sane).double()
        loss = torch.where(sane, table[:, _LOSS], LOSS_BOUND).clamp(0.0, LOSS_BOUND) / LOSS_BOUND
        columns = [torch.zeros(len(table), 0, dtype=torch.float64)]
        columns += [correct[:, None]] if "accuracy" in wanted else []
        columns += [loss[:, None]] if "loss" in wanted else []
        if "per_label" in wanted:
            one_hot = functional.one_hot(labels, count).double()
            columns += [one_hot, one_hot * correct[:, None]]
        return torch.cat(columns, dim=1)

    def site_metrics(
        self, parts: Mapping[str, np.ndarray], count: float, noise: float
    ) -> SiteMetrics:
        """Accuracy is the sum of what is correct by label where it is not asked for itself; as
        many noises as labels add up in it then."""
        values: dict[str, float] = {}
        band = None
        correct_in_all = parts.get("accuracy", parts.get("correct by label"))
        if correct_in_all is not None:
            accuracy = min(max(float(correct_in_all.sum()) / count, 0.0), 1.0)
            values["accuracy"] = accuracy
            band = BAND * noise * float(np.sqrt(len(correct_in_all) + accuracy**2)) / count
        if "loss" in parts:
            values["loss"] = max(float(parts["loss"][0]) / count, 0.0) * LOSS_BOUND
        per_label: dict[str, float] = {}
        if "units by label" in parts:
            units, correct = parts["units by label"], parts["correct by label"]
            ratio = np.clip(correct / np.maximum(units, 1.0), 0.0, 1.0)
            names = self.plan.task.labels
            per_label = {name: float(value) for name, value in zip(names, ratio, strict=True)}
        return SiteMetrics(values, self.headline, band, per_label)

    def predictions(
        self, outputs: torch.Tensor, inputs: Inputs, rows: np.ndarray
    ) -> list[ClassPrediction]:
        labels = self.plan.task.labels
        return [ClassPrediction(labels, row) for row in torch.softmax(outputs, dim=1).tolist()]

    @property
    def answer(self) -> str:
        return 'print([about["labels"][i] for i in outputs.argmax(1)])'

    @property
    def subject(self) -> str:
        return f"{len(self.plan.task.labels)} classes"
