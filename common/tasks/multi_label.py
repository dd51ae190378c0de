"""Multi-label text classification: each label applies to a text or not, by itself.

Features as for :mod:`lorica.common.tasks.text_classification`; a label's probability is the
sigmoid of its output. The rows of W start as the features of the label names times
``ZERO_SHOT_SCALE``, every bias as the log-odds of one label in C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional

from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone
from lorica.common.data.names.plan_labels import known_labels, mend_of
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks.base import Metrics, Released, SiteMetrics, Task, TensorTargets
from lorica.common.tasks.inputs import Encoded, Inputs, encode_pooled
from lorica.common.tasks.labels import labels_of
from lorica.common.tasks.noised_metrics import f1_of, ratio
from lorica.common.tasks.predictions import LabelSetPrediction
from lorica.common.tasks.targets import bad_target, label_set
from lorica.common.tasks.text_classification import TextClassifier, pooled_about, starting_state
from lorica.common.tasks.usage import usage_of_pooled

LOSS_BOUND = 8.0
"""Mean binary cross-entropy per label is cut at this many nats, and divided by it, before it is
summed."""


class MultiLabelClassification(Task):
    """Texts, each with any number of the plan's labels.

    A record's loss is the binary cross-entropy summed over the labels, in nats. Judgements: that
    loss, the predicted set and the true set as 0 and 1, C columns each.
    """

    kind: ClassVar[str] = "multi-label-classification"
    pipeline_tag: ClassVar[str] = "text-classification"
    closed_head: ClassVar[bool] = True

    @property
    def judgement_width(self) -> int:  # type: ignore[override]
        return 1 + 2 * self._count

    @property
    def _count(self) -> int:
        return len(self.plan.task.labels)

    def check(self, records: Records, *, where: str) -> None:
        sets = self._sets(records, where)
        _, unknown = self._places(records, sets)
        if unknown:
            row = next(row for row, names in enumerate(sets) if unknown[0] in names)
            raise LoricaError(
                Code.DATA_UNKNOWN_LABEL,
                f"{where}: record {row + 1} has the label {unknown[0]!r}, which is not in the "
                "plan's task.labels.",
                mend=mend_of(unknown, self.plan.task.labels),
            )

    def _places(
        self, records: Records, sets: Sequence[Sequence[str]]
    ) -> tuple[dict[str, int], list[str]]:
        found = {name for names in sets for name in names}
        return known_labels(found, self.plan.task.labels, merged=records.merged)

    def _sets(self, records: Records, where: str) -> list[tuple[str, ...]]:
        found = []
        for row, text in enumerate(records.labels):
            try:
                found.append(label_set(text, self.plan.task.separator))
            except ValueError as error:
                raise bad_target(where, row, str(error)) from None
        return found

    def with_labels(self, parts: Sequence[Records]) -> RunPlan:
        sets = [names for part in parts for names in self._sets(part, "The data")]
        return labels_of(self.plan, (name for names in sets for name in names))

    def strata(self, records: Records) -> list[str]:
        """The first of a record's labels, in the plan's order."""
        sets = self._sets(records, "The data")
        place, _ = self._places(records, sets)
        return [min(names, key=lambda n: place.get(n, 0)) if names else "none" for names in sets]

    def encode(self, backbone: Backbone, records: Records) -> Encoded:
        return encode_pooled(self.plan, backbone, records.texts)

    def targets(self, records: Records, inputs: Inputs) -> TensorTargets:
        sets = self._sets(records, "The data")
        place, _ = self._places(records, sets)
        found = torch.zeros(len(records), self._count)
        for row, names in enumerate(sets):
            found[row, [place[name] for name in names]] = 1.0
        return TensorTargets(found)

    def model(self, backbone: Backbone) -> TextClassifier:
        return TextClassifier(backbone, self.plan)

    def start(self, backbone: Backbone) -> State:
        state = starting_state(self.model(backbone), backbone, self.plan)
        state["head.bias"] -= math.log(max(self._count - 1, 1))
        return state

    def losses(
        self, outputs: torch.Tensor, targets: TensorTargets, rows: np.ndarray
    ) -> torch.Tensor:
        # By log-sigmoids: torch computes a plain sigmoid, and the cross-entropy made of it, in
        # another way where a tensor's last few values fill no vector register, so that a record's
        # loss would depend on its row and on how many rows there are.
        wanted = targets.of(rows).to(outputs.dtype)
        there, not_there = functional.logsigmoid(outputs), functional.logsigmoid(-outputs)
        return -torch.where(wanted > 0, there, not_there).sum(1)

    def residuals(
        self, outputs: torch.Tensor, targets: TensorTargets, rows: np.ndarray
    ) -> torch.Tensor:
        """sigmoid(outputs) - y."""
        return functional.logsigmoid(outputs).exp() - targets.of(rows).to(outputs.dtype)

    def judge(
        self, outputs: torch.Tensor, targets: TensorTargets, rows: np.ndarray
    ) -> torch.Tensor:
        loss = self.losses(outputs.double(), targets, rows)
        loss = torch.where(outputs.isfinite().all(1), loss, torch.nan)
        chosen = (outputs > 0).double()
        return torch.cat([loss[:, None], chosen, targets.of(rows).double()], dim=1)

    def _parted(self, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        loss, chosen, true = table.split([1, self._count, self._count], dim=1)
        return loss[:, 0], chosen, true

    def metrics(self, table: torch.Tensor) -> Metrics:
        """F1 over all decisions (micro) and averaged over the labels that occur (macro), share of
        records with exactly the right set (accuracy), mean loss."""
        loss, chosen, true = self._parted(table)
        hits = (chosen * true).sum(0)
        by_label = 2 * hits / (chosen.sum(0) + true.sum(0)).clamp(min=1)
        occurs = true.sum(0) > 0
        macro = float(by_label[occurs].mean()) if bool(occurs.any()) else 0.0
        total, extra = float(hits.sum()), float(chosen.sum())
        values = {
            "micro_f1": f1_of(total, extra - total, float(true.sum()) - total),
            "macro_f1": macro,
            "accuracy": float((chosen == true).all(1).double().mean()),
            "loss": float(loss.mean()),
        }
        return Metrics(values, self.headline)

    def released(self) -> list[Released]:
        """Right sets and loss: in [0, 1]. "f1": right, wrong and missed labels by C: at least 0,
        with a sum of at most 1. By label: shares of 1/√C each, of norm at most 1."""
        wanted = self.plan.privacy.evaluation_metrics
        parts = [Released(name) for name in ("accuracy", "loss") if name in wanted]
        parts += [Released("f1", 3)] if "f1" in wanted else []
        if "per_label" in wanted:
            parts += [Released("units by label", self._count)]
            parts += [Released("correct by label", self._count)]
        return parts

    def contributions(self, table: torch.Tensor) -> torch.Tensor:
        """A record whose outputs are not finite counts as having no label predicted, with the full
        loss."""
        wanted = self.plan.privacy.evaluation_metrics
        loss, chosen, true = self._parted(table)
        sane = loss.isfinite()
        chosen = torch.where(sane[:, None], chosen, 0.0)
        right = ((chosen == true).all(1) & sane).double()
        cut = torch.where(sane, loss / self._count, LOSS_BOUND).clamp(0.0, LOSS_BOUND) / LOSS_BOUND
        hits = chosen * true
        columns = [torch.zeros(len(table), 0, dtype=torch.float64)]
        columns += [right[:, None]] if "accuracy" in wanted else []
        columns += [cut[:, None]] if "loss" in wanted else []
        if "f1" in wanted:
            counts = [hits.sum(1), (chosen - hits).sum(1), (true - hits).sum(1)]
            columns += [torch.stack(counts, dim=1) / self._count]
        if "per_label" in wanted:
            columns += [true / math.sqrt(self._count), hits / math.sqrt(self._count)]
        return torch.cat(columns, dim=1)

    def site_metrics(
        self, parts: Mapping[str, np.ndarray], count: float, noise: float
    ) -> SiteMetrics:
        """By label: the share of the units with a label that were given it."""
        values: dict[str, float] = {}
        if "accuracy" in parts:
            values["accuracy"] = ratio(float(parts["accuracy"][0]), count)
        if "loss" in parts:
            values["loss"] = max(float(parts["loss"][0]) / count, 0.0) * LOSS_BOUND * self._count
        if "f1" in parts:
            values["micro_f1"] = f1_of(*(max(float(value), 0.0) for value in parts["f1"]))
        per_label: dict[str, float] = {}
        if "units by label" in parts:
            least = 1 / math.sqrt(self._count)
            pairs = zip(parts["units by label"], parts["correct by label"], strict=True)
            found = [ratio(float(hits), max(float(units), least)) for units, hits in pairs]
            per_label = dict(zip(self.plan.task.labels, found, strict=True))
        return SiteMetrics(values, self.headline, per_label=per_label)

    def predictions(
        self, outputs: torch.Tensor, inputs: Inputs, rows: np.ndarray
    ) -> list[LabelSetPrediction]:
        labels = self.plan.task.labels
        return [LabelSetPrediction(labels, row) for row in torch.sigmoid(outputs).tolist()]

    def about(self, backbone: Backbone) -> dict[str, Any]:
        return pooled_about(self.plan, backbone)

    def usage(self, backbone: Backbone) -> str:
        return usage_of_pooled(self.plan, backbone, self.answer)

    @property
    def answer(self) -> str:
        return (
            'print([[name for name, x in zip(about["labels"], row) if x > 0] for row in outputs])'
        )

    @property
    def subject(self) -> str:
        return f"{self._count} labels, any number of which apply"
