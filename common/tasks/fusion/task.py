"""Classification of a text or an image with columns of a table beside it, by a small fusion head.

With the feature f (H,) of text or image, of unit length, and the table's numbers t (K,)
(:mod:`lorica.common.tasks.fusion.inputs`), the outputs are

    W f + b + U t + V h,    h = tanh(g (P [f; t] + p)) / √M,    g = ``INNER_GAIN``

W and b alone are the head of the task without a table, and start as it does; U adds what the
table tells by itself, and the hidden layer of M units (table.hidden) what the two tell together
only ("high for this age"). U starts at 0. P and V start at random: were V 0, P would have no
gradient. Every part of a record's head gradient then has about the length of its residual, none
takes the whole clip norm, and none depends on another record.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn

from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone
from lorica.common.data.records import Records
from lorica.common.plan import RunPlan
from lorica.common.tasks.classes import Classes
from lorica.common.tasks.fusion.inputs import WithTable, require_table, table_values
from lorica.common.tasks.fusion.usage import about_table, usage_of_table
from lorica.common.tasks.images.pixels import VIEW_NUMBERS, Pixels
from lorica.common.tasks.images.task import (
    ImageClassification,
    ImageModel,
    usage_of_images,
)
from lorica.common.tasks.inputs import Inputs
from lorica.common.tasks.model import AdaptedModel, PooledModel
from lorica.common.tasks.text_classification import TextClassification
from lorica.common.tasks.usage import usage_of_pooled
from lorica.common.tasks.views import ViewNumbers

INNER_GAIN = 0.25
"""What the hidden layer's sums are multiplied by. A random walk of P's entries by noise then moves
what tanh reads by a quarter as much."""

_START_SUM = 1.0  # standard deviation of what tanh reads of a feature of length 1, at the start
_START_OUTER = 0.1  # length of V's rows at the start

_NAMES = {
    "weight": "feature.weight",
    "bias": "feature.bias",
    "table.weight": "table.weight",
    "inner.weight": "inner.weight",
    "inner.bias": "inner.bias",
    "outer.weight": "outer.weight",
}
"""Name in the adapter state after "head." -> name in the module. W and b are called as those of a
head without a table, so that a warm start finds them."""


class FusionHead(nn.Module):
    """Feature and table to outputs."""

    def __init__(self, features: int, table: int, hidden: int, outputs: int) -> None:
        """Lengths H, K, M and C."""
        super().__init__()
        self.feature = nn.Linear(features, outputs)
        self.table = nn.Linear(table, outputs, bias=False)
        self.inner = nn.Linear(features + table, hidden)
        self.outer = nn.Linear(hidden, outputs, bias=False)

    def forward(self, features: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Outputs (n, C) of features (n, H) and tables (n, K)."""
        table = table.to(features.dtype)
        read = self.inner(torch.cat([features, table], dim=1))
        hidden = torch.tanh(INNER_GAIN * read) / math.sqrt(self.inner.out_features)
        found: torch.Tensor = self.feature(features) + self.table(table) + self.outer(hidden)
        return found


class Fused(PooledModel):
    """A pooled model whose head reads a table, too."""

    def __init__(self, backbone: Backbone, plan: RunPlan) -> None:
        count = len(plan.task.labels)
        super().__init__(backbone, plan, count)
        head = FusionHead(backbone.feature_size, plan.table.inputs, plan.table.hidden, count)
        self.head = head  # type: ignore[assignment]

    @property
    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """As of a pooled model, with the tensors of the fusion head."""
        rest = {n: p for n, p in super().adapter_parameters.items() if not n.startswith("head.")}
        own = dict(self.head.named_parameters())
        head = {f"head.{name}": own[inside] for name, inside in _NAMES.items()}
        return {**rest, **head, "head.center": self.center}

    def outputs(self, features: torch.Tensor, inputs: Inputs, rows: np.ndarray) -> torch.Tensor:
        """The fusion head's outputs for ``rows``, whose features these are."""
        found: torch.Tensor = self.head(features, cast(WithTable, inputs).table_of(rows))
        return found


class TextTableModel(Fused):
    """Texts and a table."""


class ImageTableModel(Fused, ImageModel):
    """Images and a table."""

    def __init__(self, backbone: Backbone, plan: RunPlan) -> None:
        Fused.__init__(self, backbone, plan)


class WithTableTask(Classes):
    """What the fusion tasks add to those without a table."""

    closed_head = False

    def check(self, records: Records, *, where: str) -> None:
        super().check(records, where=where)
        require_table(self.plan.table, records, where)
        table_values(self.plan.table, records, where)

    def _beside(self, base: Inputs, records: Records) -> WithTable:
        return WithTable(base, table_values(self.plan.table, records, "The data"))

    def _fusion_start(self, features: int) -> State:
        """U, P, p and V for features of this length."""
        table, count = self.plan.table, len(self.plan.task.labels)
        generator = torch.Generator().manual_seed(self.plan.rounds.seed + 1)
        inner = torch.randn(table.hidden, features + table.inputs, generator=generator)
        outer = torch.randn(count, table.hidden, generator=generator)
        return {
            "head.table.weight": torch.zeros(count, table.inputs),
            "head.inner.weight": _START_SUM / INNER_GAIN * inner,
            "head.inner.bias": torch.zeros(table.hidden),
            "head.outer.weight": _START_OUTER * nn.functional.normalize(outer, dim=1),
        }

    def _about_table(self) -> dict[str, Any]:
        return {"table": about_table(self.plan.table, INNER_GAIN)}

    @property
    def subject(self) -> str:
        beside = "images" if self.traits.images else "texts"
        return f"{super().subject}, of {beside} and {len(self.plan.table.names)} columns of a table"


class TextTableClassification(WithTableTask, TextClassification):
    """Texts and columns of a table, each record with one of the plan's labels."""

    kind: ClassVar[str] = "text-table-classification"

    def encode(self, backbone: Backbone, records: Records) -> Inputs:
        return self._beside(super().encode(backbone, records), records)

    def model(self, backbone: Backbone) -> TextTableModel:
        return TextTableModel(backbone, self.plan)

    def start(self, backbone: Backbone) -> State:
        return super().start(backbone) | self._fusion_start(backbone.feature_size)

    def about(self, backbone: Backbone) -> dict[str, Any]:
        return super().about(backbone) | self._about_table()

    def usage(self, backbone: Backbone) -> str:
        return usage_of_pooled(self.plan, backbone, usage_of_table(self.plan.table))


class ImageTableClassification(WithTableTask, ImageClassification):
    """Images and columns of a table, each record with one of the plan's labels."""

    kind: ClassVar[str] = "image-table-classification"

    def encode(self, backbone: Backbone, records: Records) -> Inputs:
        return self._beside(super().encode(backbone, records), records)

    def model(self, backbone: Backbone) -> ImageTableModel:
        return ImageTableModel(backbone, self.plan)

    def outputs_of_views(
        self,
        model: AdaptedModel,
        inputs: Inputs,
        rows: np.ndarray,
        views: np.ndarray,
        random: ViewNumbers,
    ) -> torch.Tensor:
        """Views of the image; a row's table is the same in all of them."""
        assert isinstance(inputs, WithTable) and isinstance(inputs.base, Pixels)
        numbers = random.of(inputs.base.contents(rows), views, VIEW_NUMBERS)
        seen = inputs.base.views(rows, self.plan.training.augment, numbers)
        features = model.features(cast(ImageModel, model).pooled_of_ids(*seen))
        return model.outputs(features, inputs, rows)

    def start(self, backbone: Backbone) -> State:
        return super().start(backbone) | self._fusion_start(backbone.feature_size)

    def about(self, backbone: Backbone) -> dict[str, Any]:
        return super().about(backbone) | self._about_table()

    def usage(self, backbone: Backbone) -> str:
        return usage_of_images(self.plan, backbone, usage_of_table(self.plan.table))
