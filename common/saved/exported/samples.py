"""Records that an exported model and its adapter are compared on: made up, the same every time."""

from __future__ import annotations

import numpy as np

from lorica.common.backbone.loading import Backbone
from lorica.common.data.records import Records
from lorica.common.data.table import Table
from lorica.common.plan import RunPlan
from lorica.common.plan.traits import TRAITS
from lorica.common.tasks.base import Task
from lorica.common.tasks.inputs import Inputs, encode

TEXTS = (
    "I lost my card and need a new one today.",
    "fever",
    "Patient reports chest pain since Monday; no fever, no cough, blood pressure 140/90 mmHg.",
    "Überweisung nach Zürich fehlgeschlagen, bitte prüfen Sie das Konto.",
    "??? 12:30, 3.5 % (see above) -- e.g. x_1",
    "The doctor was very tired, and the heart of the old street is still under repair.",
    "卡丢了 и ещё раз",
    "A note that goes on. " * 60,
)
"""Short and long, of several scripts; the last is longer than most models take."""

_SIDE = 48


def sample_records(plan: RunPlan) -> Records:
    """Records of the plan's task without answers: texts or images, and cells of its table."""
    count = len(TEXTS)
    draw = np.random.default_rng(0)
    nothing = [""] * count
    images = None
    if TRAITS[plan.task.kind].images:
        ramps = np.linspace(0, 1, _SIDE)[None, :, None] * draw.uniform(0, 255, (count, 1, 1, 3))
        noise = draw.normal(0, 40, (count, _SIDE, _SIDE, 3))
        images = list((ramps + noise).clip(0, 255).astype(np.uint8))
    return Records(list(TEXTS), nothing, nothing, nothing, images, _table(plan, draw, count))


def _table(plan: RunPlan, draw: np.random.Generator, count: int) -> Table | None:
    """Numbers about their centers and every category in turn; the first record's are empty."""
    table, cells = plan.table, {}
    for name, center, scale in zip(table.columns, table.centers, table.scales, strict=True):
        numbers = center + scale * draw.normal(size=count)
        cells[name] = ["", *(f"{number:.6g}" for number in numbers[1:])]
    for name, values in table.choices.items():
        cells[name] = ["", *(values[row % len(values)] for row in range(1, count))]
    return Table.of(cells, "The sample") if cells else None


def models_language(kind: str) -> bool:
    """Whether tokens are the answer, of which every record has its own number."""
    return kind in ("causal-lm", "masked-lm")


def sample_inputs(task: Task, backbone: Backbone) -> Inputs:
    """What the model reads of :func:`sample_records`; of a model of language, whole texts."""
    if models_language(task.kind):
        return encode(backbone, TEXTS, task.plan.training.max_length)
    return task.encode_for_use(backbone, sample_records(task.plan))
