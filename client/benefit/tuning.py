"""Train on a site's own records alone, without noise: for a model that does not leave the site.

Formal guarantee:
    None, and none is claimed: the result is as private as the records. It is made inside the
    site's walls, stays there, and nothing of it, nor whether it is used, is told to anybody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from lorica.common.adapter.state import State
from lorica.common.cache.prefix import PrefixCache, features_of
from lorica.common.plan.tensors import Part, part_of
from lorica.common.tasks.base import Task
from lorica.common.tasks.model import AdaptedModel

Trains = Literal["head", "adapter"]
"""The head on features as they are, or the adapter's factors or biases with it."""

_EPOCHS, _PATIENCE, _BATCH = 40, 8, 32
_RATES = {"head": 0.03, "adapter": 1e-3}
_FEWEST = 5
"""Records to train on, below which nothing is trained."""


@dataclass(frozen=True)
class Tuned:
    """What training ended with."""

    state: State
    epoch: int
    """After which the state was; 0: as it began, because no epoch was better."""


def tune(
    task: Task,
    model: AdaptedModel,
    cache: PrefixCache,
    targets: Any,
    rows: np.ndarray,
    judged: np.ndarray,
    *,
    trains: Trains = "head",
    seed: int = 0,
    steady: bool = False,
) -> Tuned:
    """Train the model from the state that it has; Adam with falling steps, the best epoch kept.

    Args:
        task: the plan's.
        model: holds the start; its state is the result's when this returns.
        cache: of the site's records, for the model.
        targets: the records' targets.
        rows: records to train on.
        judged: records by whose loss the best epoch is chosen.
        trains: what is trained.
        seed: of the order of records.
        steady: go through all epochs, also where those after some do not count any more: with the
            same result, in a time that does not tell when that was.
    """
    start = model.adapter_state()
    if min(len(rows), len(judged)) < _FEWEST:
        return Tuned(start, 0)
    chosen = _chosen(model, trains)
    still = all(part_of(name) is Part.HEAD for name in chosen)
    read = _Reader(model, cache, keep=still)
    groups = [
        {"params": [p], "lr": _RATES["head" if part_of(name) is Part.HEAD else "adapter"]}
        for name, p in chosen.items()
    ]
    optimizer = torch.optim.Adam(groups)
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: 0.5 * (1 + math.cos(math.pi * epoch / _EPOCHS))
    )
    order = np.random.default_rng(seed)
    best, best_loss, best_epoch = start, _loss(task, read, targets, judged), 0
    over = False
    for epoch in range(1, _EPOCHS + 1):
        for batch in np.array_split(order.permutation(rows), math.ceil(len(rows) / _BATCH)):
            optimizer.zero_grad()
            for part, outputs in read(batch):
                (task.loss_sum(outputs, targets, part) / len(batch)).backward()
            optimizer.step()
        falling.step()
        loss = _loss(task, read, targets, judged)
        if loss < best_loss and not over:
            best, best_loss, best_epoch = model.adapter_state(), loss, epoch
        over = over or epoch - best_epoch >= _PATIENCE
        if over and not steady:
            break
    model.load_state(best)
    return Tuned(best, best_epoch)


def _chosen(model: AdaptedModel, trains: Trains) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, which alone ask for a gradient; the head's center and
    residuals stay as they are."""
    wanted = {Part.HEAD} if trains == "head" else {Part.HEAD, Part.A, Part.B, Part.BIAS}
    named = model.adapter_parameters
    if trains == "head" and not any(part_of(name) is Part.HEAD for name in named):
        wanted = {Part.A, Part.B, Part.BIAS}  # a task without a head
    chosen = {
        name: parameter
        for name, parameter in named.items()
        if part_of(name) in wanted and name != "head.center"
    }
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    return chosen


class _Reader:
    """Outputs of records in canonical batches; what is frozen is computed once."""

    def __init__(self, model: AdaptedModel, cache: PrefixCache, *, keep: bool) -> None:
        self._model, self._cache = model, cache
        self._features: torch.Tensor | None = None
        if keep and model.vector:
            self._features = features_of(model, cache)
        self._still = keep

    def __call__(self, rows: np.ndarray) -> Sequence[tuple[np.ndarray, torch.Tensor]]:
        """Parts of ``rows``, and their outputs, differentiable in what is trained."""
        model, cache = self._model, self._cache
        if self._features is not None:
            features = self._features[torch.from_numpy(rows)]
            return [(rows, model.outputs(features, cache.encoded, rows))]
        return [self._part(batch, len(places)) for batch, places in cache.batches(rows)]

    def _part(self, batch: np.ndarray, real: int) -> tuple[np.ndarray, torch.Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._still):
            features = self._cache.features(self._model, batch)
        outputs = self._model.outputs(features, self._cache.encoded, batch)
        return batch[:real], outputs[:real]


@torch.no_grad()
def _loss(task: Task, read: _Reader, targets: Any, rows: np.ndarray) -> float:
    total = sum(float(task.loss_sum(outputs, targets, part)) for part, outputs in read(rows))
    return total / len(rows) if math.isfinite(total) else math.inf
