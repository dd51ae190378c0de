"""An adapter from a few labelled records, or none, without a federation.

A label's prototype is the mean feature of its records on the frozen backbone (Snell et al. 2017,
"Prototypical Networks for Few-shot Learning", by cosines), blended with the feature of its name or
description, which counts as so many records: v = (w n + Σ f) / (w + k). The head's row is v at unit
length times a scale. How many records a description is worth, and the scale, are those with the
least log loss when every record in turn is left out of its own prototype.

No noise: the result tells of the few records that it was made of, as far as their mean does. Its
plan says ε = ∞ where there are any, and where the labels are those that the records have; of none,
with labels that the plan names, it has nothing of a record in it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch.nn import functional

from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone, backbone_of
from lorica.common.cache.prefix import PrefixCache, features_of
from lorica.common.data.names.plan_labels import label_indices
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.subject import DESCRIBED
from lorica.common.tasks import task_of
from lorica.common.tasks.run_data import with_labels

WORTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
"""Records that a label's name or description may count as."""
SCALES = (8.0, 12.0, 16.0, 24.0, 32.0, 48.0)
_OF_MEANING = 4.0
"""What it counts as beside unlabelled records, where there are no labelled ones."""
_UNTOLD = 2.0
"""What a description counts as where no record tells: one for each label at most."""


@dataclass(frozen=True)
class FewShot:
    """An adapter of prototypes."""

    state: State
    plan: RunPlan
    backbone: Backbone
    records: int
    """That it was made of."""
    shots: int
    """Of the label that has the most of them."""
    without: list[str]
    """Labels that none of them has."""
    worth: float
    """Records that a name or description counts as; inf where there is no record."""
    scale: float
    sums: torch.Tensor
    """Of every label the features of its records, and of its name as so many, shape (C, H)."""
    left_out: float | None
    """Share of the records that is told rightly by the others alone; None where there are none."""


def few_shot(plan: RunPlan, records: Records, shots: int | None, seed: int) -> FewShot:
    """Make prototypes of at most ``shots`` records of every label, chosen by ``seed``.

    Args:
        plan: its task and backbone; what it says of training does not count. Labels that it does
            not name are those of all records.
        records: with labels.
        shots: 0 for the descriptions alone; None for all.
        seed: of the choice.

    Raises:
        LoricaError: LOR-103 another task, LOR-306 a label that is not the plan's, LOR-307 too few
            labels, LOR-20x the backbone.
    """
    if plan.task.kind != DESCRIBED[0]:
        raise LoricaError(
            Code.PLAN_BAD_VALUE,
            f"Prototypes are of texts with one label each, not of {plan.task.kind}.",
        )
    own = with_labels(plan.replace(adapter={"kind": "head"}), records)
    task = task_of(own)
    task.check(records, where="The data")
    backbone = backbone_of(own)
    model = task.model(backbone).eval()
    state = task.start(backbone)
    model.load_state(state)
    labels = torch.tensor(label_indices(records, own.task.labels, where="The data"))
    rows = chosen(labels.tolist(), len(own.task.labels), shots, seed)
    counts = torch.bincount(labels[rows], minlength=len(own.task.labels))
    names = functional.normalize(state["head.weight"], dim=1)
    worth, left_out, sums = float("inf"), None, _OF_MEANING * names
    scale = float(state["head.weight"].norm(dim=1).mean())
    if rows:
        given = task.encode(backbone, records.take(rows))
        features = features_of(model, PrefixCache(model, given, limit_bytes=0))
        worth, scale, left_out = best_blend(features, labels[rows], names)
        sums = summed(features, labels[rows], names, worth)
        state["head.weight"] = scale * functional.normalize(sums, dim=1)
    if rows or not plan.task.labels:
        own = own.replace(privacy={"epsilon": float("inf")})
    return FewShot(
        state,
        own,
        backbone,
        len(rows),
        int(counts.max()),
        [name for name, count in zip(own.task.labels, counts.tolist(), strict=True) if not count],
        worth,
        scale,
        sums,
        left_out,
    )


def chosen(labels: list[int], count: int, shots: int | None, seed: int) -> list[int]:
    """Rows of at most ``shots`` records of each of ``count`` labels, in their order."""
    found: list[int] = []
    draw = random.Random(seed)
    for label in range(count):
        own = [row for row, given in enumerate(labels) if given == label]
        draw.shuffle(own)
        found += own if shots is None else own[:shots]
    return sorted(found)


def prototypes(
    features: torch.Tensor, labels: torch.Tensor, names: torch.Tensor, worth: float
) -> torch.Tensor:
    """Unit rows (C, H): means of features (n, H), and names (C, H) as ``worth`` records each."""
    return functional.normalize(summed(features, labels, names, worth), dim=1)


def summed(
    features: torch.Tensor, labels: torch.Tensor, names: torch.Tensor, worth: float
) -> torch.Tensor:
    """The same before they have length 1."""
    return (worth * names).index_add_(0, labels, features)


def best_blend(
    features: torch.Tensor, labels: torch.Tensor, names: torch.Tensor
) -> tuple[float, float, float]:
    """Worth of a name, scale, and the share told rightly, each record left out of its prototype.

    Of labels with one record or none, what is left without it is the name alone.
    """
    best: tuple[float, float, float, float] | None = None
    one_each = bool((torch.bincount(labels) <= 1).all())
    for worth in (_UNTOLD,) if one_each else WORTHS:
        sums = worth * names.clone()
        sums.index_add_(0, labels, features)
        cosines = features @ functional.normalize(sums, dim=1).T
        without = functional.normalize(sums[labels] - features, dim=1)
        cosines[torch.arange(len(labels)), labels] = (features * without).sum(1)
        right = float((cosines.argmax(1) == labels).double().mean())
        for scale in SCALES:
            loss = float(functional.cross_entropy(scale * cosines, labels))
            if best is None or loss < best[0]:
                best = loss, worth, scale, right
    assert best is not None
    return best[1:]
