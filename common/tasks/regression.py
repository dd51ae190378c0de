"""Text regression: one number per text, by one linear output on the text's feature.

Targets are scaled by the plan's public bounds to t = (2y - minimum - maximum) / (maximum -
minimum), which lies in [-1, 1]: the data's own mean and spread are private. Predictions are cut to
the bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone
from lorica.common.data.records import Records
from lorica.common.tasks.base import Metrics, Released, SiteMetrics, Task, TensorTargets
from lorica.common.tasks.inputs import Encoded, Inputs, encode_pooled
from lorica.common.tasks.model import PooledModel, starting_factors
from lorica.common.tasks.predictions import NumberPrediction
from lorica.common.tasks.targets import bad_target, number
from lorica.common.tasks.text_classification import pooled_about
from lorica.common.tasks.usage import usage_of_pooled

_STRATA = 5
_LOSS, _GIVEN, _TRUE = 0, 1, 2  # columns of judgements


class TextRegression(Task):
    """Texts, each with a number between the plan's bounds.

    A record's loss is (output - t)², without unit. Judgements: that loss (NaN where the output
    is not finite), the output cut to [-1, 1], and t.
    """

    kind: ClassVar[str] = "text-regression"
    pipeline_tag: ClassVar[str] = "text-classification"
    closed_head: ClassVar[bool] = True
    judgement_width: ClassVar[int] = 3

    def check(self, records: Records, *, where: str) -> None:
        self._numbers(records, where)

    def _numbers(self, records: Records, where: str) -> list[float]:
        task, found = self.plan.task, []
        for row, text in enumerate(records.labels):
            try:
                found.append(number(text, task.minimum, task.maximum))
            except ValueError as error:
                raise bad_target(where, row, str(error)) from None
        return found

    def _scaled(self, records: Records, where: str) -> torch.Tensor:
        low, high = self.plan.task.minimum, self.plan.task.maximum
        values = torch.tensor(self._numbers(records, where), dtype=torch.float64)
        return (2 * values - low - high) / (high - low)

    def strata(self, records: Records) -> list[str]:
        """The fifth of the range between the bounds that a target lies in."""
        low, high = self.plan.task.minimum, self.plan.task.maximum
        edges = [low + (high - low) * part / _STRATA for part in range(_STRATA + 1)]
        scaled = self._scaled(records, "The data")
        places = ((scaled + 1) / 2 * _STRATA).long().clamp(0, _STRATA - 1).tolist()
        return [f"{edges[place]:g} to {edges[place + 1]:g}" for place in places]

    def encode(self, backbone: Backbone, records: Records) -> Encoded:
        return encode_pooled(self.plan, backbone, records.texts)

    def targets(self, records: Records, inputs: Inputs) -> TensorTargets:
        return TensorTargets(self._scaled(records, "The data").float())

    def model(self, backbone: Backbone) -> PooledModel:
        return PooledModel(backbone, self.plan, 1)

    def start(self, backbone: Backbone) -> State:
        """Head: a random direction of length 1, so that LoRA has a gradient from the first step."""
        generator = torch.Generator().manual_seed(self.plan.rounds.seed)
        model = self.model(backbone)
        state = starting_factors(model, generator)
        direction = torch.randn(model.head.weight.shape, generator=generator)
        state["head.weight"] = direction / direction.norm()
        return state

    def losses(
        self, outputs: torch.Tensor, targets: TensorTargets, rows: np.ndarray
    ) -> torch.Tensor:
        return (outputs[:, 0] - targets.of(rows)).square()

    def residuals(
        self, outputs: torch.Tensor, targets: TensorTargets, rows: np.ndarray
    ) -> torch.Tensor:
        """2 (output - t)."""
        return 2 * (outputs - targets.of(rows)[:, None])

    def judge(
        self, outputs: torch.Tensor, targets: TensorTargets, rows: np.ndarray
    ) -> torch.Tensor:
        given, true = outputs[:, 0].double(), targets.of(rows).double()
        loss = torch.where(given.isfinite(), (given - true).square(), torch.nan)
        return torch.stack([loss, given.clamp(-1.0, 1.0), true], dim=1)

    def metrics(self, table: torch.Tensor) -> Metrics:
        """R² (1 less the squared error over the targets' spread), squared and absolute error in
        the target's unit, mean loss."""
        given, true = table[:, _GIVEN], table[:, _TRUE]
        half = (self.plan.task.maximum - self.plan.task.minimum) / 2
        error = float((given - true).square().mean())
        spread = float((true - true.mean()).square().mean())
        values = {
            "r2": 1 - error / spread if spread > 0 else 0.0,
            "mse": error * half**2,
            "mae": float((given - true).abs().mean()) * half,
            "loss": float(table[:, _LOSS].mean()),
        }
        return Metrics(values, self.headline)

    def released(self) -> list[Released]:
        """Squared error / 4 and absolute error / 2 of what was cut to the bounds: in [0, 1].
        "targets": (t, t²) / √2, of norm at most 1."""
        wanted = self.plan.privacy.evaluation_metrics
        parts = [Released("loss")] if {"loss", "r2"} & set(wanted) else []
        parts += [Released("mae")] if "mae" in wanted else []
        return parts + ([Released("targets", 2)] if "r2" in wanted else [])

    def contributions(self, table: torch.Tensor) -> torch.Tensor:
        """A record whose output is not finite has the full error."""
        true, sane = table[:, _TRUE], table[:, _LOSS].isfinite()
        off = torch.where(sane, (table[:, _GIVEN] - true).abs(), 2.0).clamp(0.0, 2.0)
        columns = [torch.zeros(len(table), 0, dtype=torch.float64)]
        for part in self.released():
            if part.name == "loss":
                columns.append(off.square()[:, None] / 4)
            elif part.name == "mae":
                columns.append(off[:, None] / 2)
            else:
                columns.append(torch.stack([true, true.square()], dim=1) / 2**0.5)
        return torch.cat(columns, dim=1)

    def site_metrics(
        self, parts: Mapping[str, np.ndarray], count: float, noise: float
    ) -> SiteMetrics:
        values: dict[str, float] = {}
        half = (self.plan.task.maximum - self.plan.task.minimum) / 2
        if "loss" in parts:
            values["loss"] = max(float(parts["loss"][0]) * 4 / count, 0.0)
        if "mae" in parts:
            values["mae"] = max(float(parts["mae"][0]) * 2 / count, 0.0) * half
        if "targets" in parts:
            mean, square = parts["targets"] * 2**0.5 / count
            spread = float(square - mean**2)
            values["r2"] = max(1 - values["loss"] / spread, -1.0) if spread > 0 else 0.0
        return SiteMetrics(values, self.headline)

    def predictions(
        self, outputs: torch.Tensor, inputs: Inputs, rows: np.ndarray
    ) -> list[NumberPrediction]:
        low, high = self.plan.task.minimum, self.plan.task.maximum
        cut = outputs[:, 0].double().clamp(-1.0, 1.0)
        return [NumberPrediction(low + (high - low) * (t + 1) / 2) for t in cut.tolist()]

    def about(self, backbone: Backbone) -> dict[str, Any]:
        bounds = {"minimum": self.plan.task.minimum, "maximum": self.plan.task.maximum}
        return pooled_about(self.plan, backbone) | bounds

    def usage(self, backbone: Backbone) -> str:
        return usage_of_pooled(self.plan, backbone, self.answer)

    @property
    def answer(self) -> str:
        return """low, high = about["minimum"], about["maximum"]
print((low + (high - low) * (outputs[:, 0].clip(-1, 1) + 1) / 2).tolist())"""

    @property
    def subject(self) -> str:
        return f"a number from {self.plan.task.minimum:g} to {self.plan.task.maximum:g}"
