"""What is frozen is computed once: token states below the lowest adapted layer, or features.

The layers below the lowest adapted one are frozen, so their output for a record never changes.
It is kept as one float32 array over all tokens of all records, without padding. As long as the
encoder is the backbone as it came (adapter kind "head", and LoRA before its first step) the
pooled states do not change either, and are kept beside, one row per record.

Formal guarantee:
    Both are computed in canonical batches of records by themselves
    (:mod:`lorica.common.cache.batching`), whether they are kept or made anew each time, so a
    record's values depend on that record alone, to the bit: not on the other records, on what
    fits in memory, or on how the records are divided among sites and caches.

Both are in memory as far as they fit, or in files of a folder that is set once for the process
(:meth:`lorica.common.cache.shelf.CacheShelf.keep_in`), from which they are mapped and found again
after a restart.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from lorica.common.cache.batching import record_batches
from lorica.common.cache.files import CacheFolder, Fill
from lorica.common.cache.hands import filled, shared_empty
from lorica.common.machine.memory import release_unused
from lorica.common.tasks.base import Prediction, Task
from lorica.common.tasks.inputs import Inputs
from lorica.common.tasks.model import AdaptedModel, PooledModel

CACHE_BYTES = 2**30
"""Memory for the cached states of one process's data sets together, bytes."""

FLOAT_BYTES = 4


class PrefixCache:
    """Features of records by row; the frozen part is computed once when it fits in memory.

    A cache belongs to one data set and to any number of classifiers with the same backbone and
    the same adapted layers.
    """

    def __init__(
        self,
        classifier: AdaptedModel,
        encoded: Inputs,
        *,
        limit_bytes: int = CACHE_BYTES,
        states: bool = True,
        files: tuple[CacheFolder, str] | None = None,
        hands: int = 1,
    ) -> None:
        """
        Args:
            classifier: any of those that the cache is for.
            encoded: the records.
            limit_bytes: what does not fit is computed anew each time.
            states: whether features will be wanted from an encoder that is not idle.
            files: a folder for what is cached, and a key that says what it is computed from; it
                then need not fit in memory.
            hands: processes that compute what is cached
                (:func:`~lorica.common.cache.hands.filled`).
        """
        self._files, self._hands = files, hands
        self.encoded = encoded
        self.lengths, self.sizes = encoded.lengths, encoded.sizes
        self._pooled: torch.Tensor | None = None
        self._states: torch.Tensor | None = None
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._width, self._pooled_width = classifier.width, classifier.pooled_width
        self._room = limit_bytes // FLOAT_BYTES  # numbers in the cache
        moving = states and not classifier.frozen
        self._split = bool(classifier.prefix.depth and (moving or not classifier.vector))
        if self._split:
            self._states = self._kept(
                "states",
                (int(self._starts[-1]), self._width),
                len(encoded) * self._pooled_width,
                lambda into: self._fill_states(classifier, into),
            )
        release_unused()

    @property
    def size_bytes(self) -> int:
        """Memory the cache holds, bytes."""
        if self._files is not None:
            return 0  # mapped: the system takes the pages back when it needs them
        held = [tensor for tensor in (self._pooled, self._states) if tensor is not None]
        return sum(tensor.numel() * FLOAT_BYTES for tensor in held)

    def features(self, classifier: AdaptedModel, rows: np.ndarray) -> torch.Tensor:
        """The model's features of ``rows``, differentiable in the adapter.

        Cached pooled states serve an idle encoder only while it needs no gradient: B = 0 has a
        gradient too, for which the encoder must run.

        Args:
            classifier: one of those that the cache is for.
            rows: a canonical batch (:mod:`lorica.common.cache.batching`), shape (R,).
        """
        still = not torch.is_grad_enabled() or classifier.still
        if classifier.vector and (classifier.frozen or (still and classifier.idle)):
            return classifier.features(self._idle_of(classifier, rows))
        return classifier.features(self._through(classifier, rows))

    def outputs(self, classifier: AdaptedModel, rows: np.ndarray) -> torch.Tensor:
        """The model's outputs for ``rows``, differentiable in the adapter."""
        return classifier.outputs(self.features(classifier, rows), self.encoded, rows)

    def batches(self, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """:func:`~lorica.common.cache.batching.record_batches` of these rows, or of all."""
        rows = np.arange(len(self.encoded)) if rows is None else rows
        return record_batches(rows, self.sizes, self.encoded.limit)

    def fill(self, classifier: AdaptedModel) -> None:
        """Compute what an idle encoder makes of every record now, if it is kept at all."""
        if classifier.vector and classifier.idle:
            self._idle_pooled(classifier)

    def _idle_of(self, classifier: AdaptedModel, rows: np.ndarray) -> torch.Tensor:
        """Pooled states (R, H) of rows through the backbone as it came, kept or not."""
        pooled = self._idle_pooled(classifier)
        if pooled is not None:
            return pooled[torch.from_numpy(rows)]
        with torch.no_grad():
            found = torch.empty(len(rows), self._pooled_width)
            for batch, places in record_batches(rows, self.sizes, self.encoded.limit):
                part = self._through(classifier, batch)[: len(places)]
                found[torch.from_numpy(places)] = part
        return found

    def _idle_pooled(self, classifier: AdaptedModel) -> torch.Tensor | None:
        """Pooled states (N, H) of all records through the backbone as it came, computed once;
        None when they do not fit. The classifier must be idle when they are computed."""
        if self._pooled is None:
            self._pooled = self._kept(
                "pooled",
                (len(self.encoded), self._pooled_width),
                0,
                lambda into: self._fill_pooled(classifier, into),
            )
            release_unused()
        return self._pooled

    def _kept(
        self, kind: str, shape: tuple[int, int], beside: int, fill: Fill
    ) -> torch.Tensor | None:
        """An array of this shape: in a file if there is a folder, else in memory if it and as
        many numbers as go ``beside`` it fit; None otherwise."""
        if self._files is not None:
            folder, key = self._files
            return folder.get(f"{key} {kind}", shape, fill)
        if shape[0] * shape[1] + beside > self._room:
            return None
        values = torch.empty(shape) if self._hands == 1 else shared_empty(shape)
        fill(values)
        return values

    def _through(self, classifier: AdaptedModel, rows: np.ndarray) -> torch.Tensor:
        """What is pooled of ``rows`` through the adapted layers."""
        arguments = self.encoded.collate(rows)
        if not self._split:
            return classifier.pooled_of_ids(*arguments)
        mask = arguments[1]
        hidden = torch.zeros(*mask.shape, self._width)
        if self._states is not None:
            for position, row in enumerate(rows):
                span = self._states[self._starts[row] : self._starts[row + 1]]
                hidden[position, : len(span)] = span
        else:
            for position, span in self._spans(classifier, rows):
                hidden[position, : len(span)] = span
        return classifier.pooled(hidden, mask)

    def _spans(
        self, classifier: AdaptedModel, rows: np.ndarray, mine: slice = slice(None)
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Of each row, where it is in ``rows`` and its token states (T, H) below the adapted
        layers, without padding; of some of the batches."""
        batches = record_batches(rows, self.sizes, self.encoded.limit)
        for batch, places in itertools.islice(batches, mine.start, mine.stop, mine.step):
            hidden = classifier.hidden_of_ids(*self.encoded.collate(batch))
            for position, place in enumerate(places.tolist()):
                yield place, hidden[position, : self.lengths[rows[place]]]

    def _fill_states(self, classifier: AdaptedModel, states: torch.Tensor) -> None:
        everything = np.arange(len(self.encoded))

        def fill(mine: slice) -> None:
            for row, span in self._spans(classifier, everything, mine):
                states[self._starts[row] : self._starts[row + 1]].copy_(span)

        filled(fill, self._hands)

    @torch.no_grad()
    def _fill_pooled(self, classifier: AdaptedModel, pooled: torch.Tensor) -> None:
        everything = np.arange(len(self.encoded))

        def fill(mine: slice) -> None:
            batches = record_batches(everything, self.sizes, self.encoded.limit)
            for batch, places in itertools.islice(batches, mine.start, mine.stop, mine.step):
                pooled[torch.from_numpy(places)] = self._through(classifier, batch)[: len(places)]

        filled(fill, self._hands)


@torch.no_grad()
def features_of(model: AdaptedModel, cache: PrefixCache) -> torch.Tensor:
    """Features (N, F) of all records of the cache, of a model with one vector per record."""
    found: torch.Tensor | None = None
    for batch, places in cache.batches():
        part = cache.features(model, batch)[: len(places)]
        if found is None:
            found = torch.empty(len(cache.encoded), part.shape[1])
        found[torch.from_numpy(places)] = part
    return torch.empty(0, model.pooled_width) if found is None else found


@torch.no_grad()
def predict_logits(classifier: PooledModel, cache: PrefixCache) -> torch.Tensor:
    """Outputs (n, C) of all records of the cache, in their order."""
    logits = torch.empty(len(cache.encoded), classifier.head.out_features)
    for batch, places in cache.batches():
        logits[torch.from_numpy(places)] = cache.outputs(classifier, batch)[: len(places)]
    return logits


@torch.no_grad()
def judgements(
    task: Task,
    model: AdaptedModel,
    cache: PrefixCache,
    targets: Any,
    rows: np.ndarray | None = None,
) -> torch.Tensor:
    """The task's judgements (n, S) of records of the cache in the order of ``rows``, float64; of
    all when omitted. A record's judgement depends on that record alone, to the bit."""
    rows = np.arange(len(cache.encoded)) if rows is None else rows
    found = torch.zeros(len(rows), task.judgement_width, dtype=torch.float64)
    for batch, places in cache.batches(rows):
        part = task.judge(cache.outputs(model, batch), targets, batch)
        found[torch.from_numpy(places)] = part[: len(places)]
    return found


@torch.no_grad()
def predictions(task: Task, model: AdaptedModel, cache: PrefixCache) -> list[Prediction]:
    """The task's predictions for all records of the cache, in their order."""
    found: dict[int, Prediction] = {}
    for batch, places in cache.batches():
        answers = task.predictions(cache.outputs(model, batch), cache.encoded, batch)
        found.update(zip(places.tolist(), answers[: len(places)], strict=True))
    return [found[row] for row in range(len(cache.encoded))]
