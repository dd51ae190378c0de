"""Backbones in the order of what a head on their frozen features is worth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorica.client.choice.logme import logme
from lorica.client.choice.probe import Probed, probe
from lorica.client.mechanism.evaluation import aside_by
from lorica.client.mechanism.exactness import require_exact
from lorica.client.mechanism.independence import require_independence
from lorica.client.mechanism.noise import NoiseSource
from lorica.common.backbone.loading import backbone_of
from lorica.common.backbone.quantised import weight_bytes
from lorica.common.cache.prefix import PrefixCache, features_of
from lorica.common.data.names.plan_labels import label_indices
from lorica.common.data.records import UNNAMED, Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks import task_of

SHARE = 0.3
"""Of units, to judge on."""
FEWEST = 20
"""Units to judge on."""


@dataclass(frozen=True)
class Ranked:
    """What is known of one backbone."""

    source: str
    accuracy: float
    """Of the probe, by noised counts: the only figure that has an ε."""
    logme: float
    """Exact, and so as private as the records."""
    seconds: float
    """To read a thousand records."""
    weight_bytes: int
    parameters: int
    width: int
    """Numbers of a feature."""


@dataclass(frozen=True)
class Ranking:
    """All backbones, the best probe first."""

    rows: list[Ranked]
    probed: Probed


def rank_backbones(
    plan: RunPlan,
    sources: Sequence[str],
    records: Records,
    *,
    epsilon: float,
    delta: float,
    noise: NoiseSource,
    secret: bytes,
) -> Ranking:
    """Rank backbones on records of a task that chooses one label.

    Args:
        plan: of the task, its labels filled in; its backbone does not count.
        sources: folders, hub ids or "embedded"; at least two.
        records: with labels.
        epsilon, delta: what all probes together may cost.
        noise: of the probes.
        secret: decides which units are judged on.

    Raises:
        LoricaError: LOR-103 another task, LOR-20x a backbone, LOR-308 too few records.
    """
    task = task_of(plan)
    if not task.closed_head or not task.traits.one_label_each:
        raise LoricaError(
            Code.PLAN_BAD_VALUE,
            f"Backbones are ranked by tasks that choose one label, not by {plan.task.kind}.",
        )
    task.check(records, where="The data")
    aside = aside_by(records, SHARE, secret)
    units = [
        f"{row}" if unit.startswith(UNNAMED) else f"unit {unit}"
        for row, unit in enumerate(records.units)
    ]
    if len({units[row] for row in aside.nonzero()[0]}) < FEWEST:
        raise LoricaError(
            Code.DATA_TOO_FEW_RECORDS,
            f"{len(set(units))} units are too few: at least {FEWEST} are needed to judge on, a "
            "third of all.",
            mend="Rank backbones on more records.",
        )
    features: list[torch.Tensor] = []
    costs: list[tuple[float, int, int]] = []
    for source in sources:
        found, seconds, size, parameters = _read(plan, source, records)
        features.append(found)
        costs.append((seconds, size, parameters))
    labels = torch.tensor(label_indices(records, plan.task.labels, where="The data"))
    probed = probe(features, labels, len(plan.task.labels), aside, units, epsilon, delta, noise)
    rows = [
        Ranked(
            source,
            accuracy,
            logme(found, labels, len(plan.task.labels)),
            seconds,
            size,
            parameters,
            found.shape[1],
        )
        for source, accuracy, found, (seconds, size, parameters) in zip(
            sources, probed.accuracies, features, costs, strict=True
        )
    ]
    return Ranking(sorted(rows, key=lambda row: -row.accuracy), probed)


def _read(plan: RunPlan, source: str, records: Records) -> tuple[torch.Tensor, float, int, int]:
    """The records' features, seconds by thousand, bytes and parameters."""
    own = task_of(plan.replace(backbone={"source": source, "sha256": "", "revision": ""}))
    backbone = backbone_of(own.plan)
    model = own.model(backbone).eval()
    model.load_state(own.start(backbone))
    require_independence(model.pooled_of_ids, backbone)
    require_exact(model, backbone, own.encode(backbone, records.take([])))
    started = time.perf_counter()
    cache = PrefixCache(model, own.encode(backbone, records), limit_bytes=0)
    found = features_of(model, cache)
    seconds = (time.perf_counter() - started) * 1000 / max(1, len(records))
    parameters = sum(tensor.numel() for tensor in backbone.model.parameters())
    return found, seconds, weight_bytes(backbone.model), parameters
