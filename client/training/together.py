"""Many sites of one process train at once: charged one by one, computed in one pass.

Formal guarantee:
    What a site releases is, to the bit, what :meth:`~lorica.client.training.trainer.LocalTrainer.
    train` would give it alone: units are computed in the same canonical blocks, whose rows do not
    know of each other (:mod:`lorica.client.mechanism.frozen_features`), every site's sum is made
    of its own units alone in the same order and shape, and it has noise from its own stream. Every
    site checks and charges before anything is computed of its records. So all guarantees are those
    of the sites one by one.

What is no release on frozen features is trained site by site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lorica.client.answering.endpoint import answered
from lorica.client.answering.protocol import Trainer
from lorica.client.mechanism.frozen_features import noised_sums
from lorica.client.mechanism.noise import NoiseSource
from lorica.client.training.session import Drawn, Session, idle_features, in_closed_form, named
from lorica.client.training.trainer import Begun, LocalTrainer
from lorica.common.adapter.state import State
from lorica.common.cache.shelf import joined
from lorica.common.plan.stages import stage_of
from lorica.common.tasks.base import TensorTargets
from lorica.common.wire.messages import TRAIN, Reply, Request

_MOST_RECORDS = 4096
"""Records that are computed in one pass, unless a single site has more: bounds memory, and keeps
it in the processor's cache."""


@dataclass
class _Part:
    """What one site brings to a pass."""

    place: int
    trainer: LocalTrainer
    begun: Begun
    noise: NoiseSource
    drawn: Drawn


def train_together(trainers: Sequence[Trainer], request: Request) -> list[Reply]:
    """The reply of every trainer to one request to train, in their order; never raises: a refusal
    is a reply."""
    if not _is_release(request):
        return [answered(one, "train", request, partial(one.train, request)) for one in trainers]
    found: dict[int, Reply] = {}
    begun: list[tuple[int, LocalTrainer, Begun]] = []
    for place, trainer in enumerate(trainers):
        if not (isinstance(trainer, LocalTrainer) and trainer.joins(request)):
            found[place] = answered(trainer, "train", request, partial(trainer.train, request))
            continue
        first = answered(trainer, "train", request, partial(trainer.begin_training, request))
        if isinstance(first, Begun):
            begun.append((place, trainer, first))
        else:
            found[place] = first
    found |= dict(_computed(begun, request))
    return [found[place] for place in range(len(trainers))]


def _is_release(request: Request) -> bool:
    """Whether the round is one on frozen features, in closed form: the model stays as it is."""
    plan = request.plan
    if not 1 <= request.round <= plan.rounds.count:
        return False
    return in_closed_form(plan, stage_of(plan, request.round))


def _computed(
    begun: Sequence[tuple[int, LocalTrainer, Begun]], request: Request
) -> Iterator[tuple[int, Reply]]:
    """The replies of sites that have charged, in whatever order."""
    parts: list[_Part] = []
    records = 0
    for place, trainer, one in begun:
        try:
            one.session.read()
            noise = trainer.source(request, TRAIN)
            parts.append(_Part(place, trainer, one, noise, one.session.drawn(one.event, noise)))
        except Exception:  # noqa: BLE001 - whatever it is, alone it is met again, and answered
            yield place, _alone(trainer, one)
            continue
        records += len(parts[-1].drawn.rows)
        if records >= _MOST_RECORDS:
            yield from _passed(parts, request)
            parts, records = [], 0
    yield from _passed(parts, request)


def _alone(trainer: LocalTrainer, begun: Begun) -> Reply:
    """The reply of a site by itself, whose noise begins anew: nothing of it was released."""
    request = begun.request

    def update() -> State:
        trainer.load(begun)
        noise = trainer.source(request, TRAIN)
        return begun.session.train(request.round, begun.event, noise)

    return _finished(trainer, begun, update)


def _finished(trainer: LocalTrainer, begun: Begun, update: Callable[[], State]) -> Reply:
    return answered(
        trainer, "train", begun.request, partial(trainer.finish_training, begun, update)
    )


def _passed(parts: list[_Part], request: Request) -> Iterator[tuple[int, Reply]]:
    """The replies of sites that are computed together."""
    try:
        updates = _released(parts, request) if parts else []
    except Exception:  # noqa: BLE001 - some site's records: alone, the others are as they were
        for part in parts:
            yield part.place, _alone(part.trainer, part.begun)
        return
    for part, update in zip(parts, updates, strict=True):
        yield part.place, _finished(part.trainer, part.begun, partial(_given, update))


def _given(update: State) -> State:
    return update


def _released(parts: list[_Part], request: Request) -> list[State]:
    """What the sites release."""
    stage, first = stage_of(request.plan, request.round), parts[0].begun
    session: Session = first.session
    others = [part.begun for part in parts]
    if any(one.session.model is not session.model or one.event != first.event for one in others):
        raise ValueError("the sites do not share a model and a mechanism")
    drawn = [part.drawn for part in parts]
    whole = joined([(one.cache, one.rows) for one in drawn])
    if whole is not None:
        features = idle_features(whole[0], session.model.classifier, whole[1])
    else:
        each = [idle_features(one.cache, session.model.classifier, one.rows) for one in drawn]
        features = torch.cat(each)
    targets = TensorTargets(torch.cat([one.targets.of(one.rows) for one in drawn]))
    counts = [len(one.rows) for one in drawn]
    units = [int(one.owner[-1]) + 1 if len(one.owner) else 0 for one in drawn]
    starts = np.cumsum([0, *units])[:-1].tolist()
    owner = torch.cat([one.owner + start for one, start in zip(drawn, starts, strict=True)])
    given = session.contributions_of(stage, features, targets, np.arange(sum(counts)))
    noises = [part.noise for part in parts]
    return [named(stage, sum) for sum in noised_sums(given, owner, counts, first.event, noises)]
