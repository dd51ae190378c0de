"""What is frozen is computed once: token states below the lowest adapted layer, or features.

The layers below the lowest adapted one are frozen, so their output for a record never changes.
It is kept as one float32 array over all tokens of all records, without padding. As long as the
encoder is the backbone as it came (adapter kind "head", and LoRA before its first step) the
pooled states do not change either, and are kept beside, one row per record.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from lorica.common.backbones import Backbone
from lorica.common.batching import micro_batches
from lorica.common.memory import release_unused
from lorica.common.tasks.base import Prediction, Task
from lorica.common.tasks.inputs import Encoded, Inputs
from lorica.common.tasks.model import AdaptedModel, PooledModel

CACHE_BYTES = 2**30
"""Memory for the cached states of one process's data sets together, bytes."""

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class _Key:
    model: str
    depth: int
    vector: bool
    limit_bytes: int
    states: bool
    texts: bytes

    def serves(self, other: _Key) -> bool:
        """Whether this cache's records are kept as the other's would be."""
        mine = (self.model, self.depth, self.vector)
        return mine == (other.model, other.depth, other.vector) and (
            self.states or not other.states
        )


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
    ) -> None:
        """
        Args:
            classifier: any of those that the cache is for.
            encoded: the records.
            limit_bytes: what does not fit is computed anew each time.
            states: whether features will be wanted from an encoder that is not idle.
        """
        self.encoded = encoded
        self.lengths = encoded.lengths
        self._pooled: torch.Tensor | None = None
        self._states: torch.Tensor | None = None
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._width = classifier.width
        self._room = limit_bytes // (_FLOAT_BYTES * self._width)  # rows of the cache
        moving = states and not classifier.frozen
        wanted = classifier.prefix.depth and (moving or not classifier.vector)
        if wanted and self._starts[-1] + len(encoded) <= self._room:
            self._states = self._fill_states(classifier, self._width)
        release_unused()

    @property
    def size_bytes(self) -> int:
        """Memory the cache holds, bytes."""
        held = [tensor for tensor in (self._pooled, self._states) if tensor is not None]
        return sum(tensor.numel() * _FLOAT_BYTES for tensor in held)

    def features(self, classifier: AdaptedModel, rows: np.ndarray) -> torch.Tensor:
        """The model's features of ``rows``, differentiable in the adapter.

        Cached pooled states serve an idle encoder only while it needs no gradient: B = 0 has a
        gradient too, for which the encoder must run.
        """
        still = not torch.is_grad_enabled() or classifier.still
        if classifier.vector and (classifier.frozen or (still and classifier.idle)):
            pooled = self._idle_pooled(classifier)
            if pooled is not None:
                return classifier.features(pooled[torch.from_numpy(rows)])
        return classifier.features(self._through(classifier, rows))

    def outputs(self, classifier: AdaptedModel, rows: np.ndarray) -> torch.Tensor:
        """The model's outputs for ``rows``, differentiable in the adapter."""
        return classifier.outputs(self.features(classifier, rows), self.encoded, rows)

    def _idle_pooled(self, classifier: AdaptedModel) -> torch.Tensor | None:
        """Pooled states (N, H) of all records through the backbone as it came, computed once;
        None when they do not fit. The classifier must be idle when they are computed."""
        if self._pooled is None and len(self.encoded) <= self._room:
            self._pooled = self._fill_pooled(classifier)
            release_unused()
        return self._pooled

    def _through(self, classifier: AdaptedModel, rows: np.ndarray) -> torch.Tensor:
        """Pooled states (n, H) of ``rows`` through the adapted layers."""
        if self._states is None:
            return classifier.pooled_of_ids(*self.encoded.collate(rows))
        spans = [self._states[self._starts[row] : self._starts[row + 1]] for row in rows]
        lengths = torch.from_numpy(self.lengths[rows])
        hidden = pad_sequence(spans, batch_first=True)
        mask = (torch.arange(hidden.shape[1])[None] < lengths[:, None]).long()
        return classifier.pooled(hidden, mask)

    def _fill_states(self, classifier: AdaptedModel, width: int) -> torch.Tensor:
        states = torch.empty(int(self._starts[-1]), width)
        for rows in micro_batches(np.arange(len(self.encoded)), self.lengths):
            hidden = classifier.prefix.hidden(*self.encoded.collate(rows))
            for position, row in enumerate(rows):
                span = states[self._starts[row] : self._starts[row + 1]]
                span.copy_(hidden[position, : len(span)])
        return states

    @torch.no_grad()
    def _fill_pooled(self, classifier: AdaptedModel) -> torch.Tensor:
        pooled = torch.empty(len(self.encoded), self._width)
        for rows in micro_batches(np.arange(len(self.encoded)), self.lengths):
            pooled[torch.from_numpy(rows)] = self._through(classifier, rows)
        return pooled


class CacheView(PrefixCache):
    """Some records of a cache that is kept whole: what one site sees of a data set's."""

    def __init__(self, whole: PrefixCache, encoded: Inputs, places: list[int]) -> None:
        """``places``: the row in ``whole`` of every record of ``encoded``."""
        self.encoded = encoded
        self.lengths = encoded.lengths
        self._whole, self._places = whole, np.array(places, dtype=np.int64)

    @property
    def size_bytes(self) -> int:
        """Memory the view holds beside the whole: none worth counting."""
        return 0

    def features(self, classifier: AdaptedModel, rows: np.ndarray) -> torch.Tensor:
        """As of the whole."""
        return self._whole.features(classifier, self._places[rows])


class CacheShelf:
    """Caches of one process by content, so that runs and sites with the same texts share them.

    A simulation of many plans on one data set, or a site that serves one plan after another,
    computes the frozen part once. The least recently used go first when the shelf is full.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        """``limit_bytes``: of all caches on the shelf together."""
        self.limit_bytes = limit_bytes
        self._held: OrderedDict[_Key, PrefixCache] = OrderedDict()
        self._places: dict[_Key, dict[bytes, int]] = {}  # of caches laid out: text -> row
        self._lock = threading.Lock()

    def get(
        self,
        classifier: AdaptedModel,
        encoded: Inputs,
        *,
        backbone: Backbone,
        limit_bytes: int = CACHE_BYTES,
        states: bool = True,
    ) -> PrefixCache:
        """The cache of these texts for classifiers with this backbone and split; made if absent.

        Args:
            classifier: idle, or with ``states`` wanted.
            encoded: the texts.
            backbone: the classifier's.
            limit_bytes: as for :class:`PrefixCache`.
            states: as for :class:`PrefixCache`.
        """
        key = _key(classifier, encoded, backbone, limit_bytes, states)
        with self._lock:
            return self._view(key, encoded) or self._made(key, classifier, encoded)

    def lay_out(
        self, classifier: AdaptedModel, encoded: Inputs, *, backbone: Backbone, states: bool
    ) -> None:
        """Keep one cache of a whole data set while there is room: later :meth:`get` for any part
        of it gives a view. For simulations, whose sites have parts of one data set.

        Args:
            classifier: as for :meth:`get`, like the others.
            encoded: all the texts; inputs of other kinds are left to :meth:`get`.
            backbone: the classifier's.
            states: as for :class:`PrefixCache`.
        """
        if not isinstance(encoded, Encoded):
            return
        key = _key(classifier, encoded, backbone, self.limit_bytes, states)
        with self._lock:
            self._made(key, classifier, encoded)
            if key not in self._places:
                rows = enumerate(encoded.tokens)
                self._places[key] = {ids.tobytes(): row for row, ids in rows}

    def _view(self, key: _Key, encoded: Inputs) -> CacheView | None:
        if not isinstance(encoded, Encoded):
            return None
        for whole, places in self._places.items():
            if whole.serves(key):
                found = [places.get(ids.tobytes(), -1) for ids in encoded.tokens]
                if -1 not in found:
                    self._held.move_to_end(whole)
                    return CacheView(self._held[whole], encoded, found)
        return None

    def _made(self, key: _Key, classifier: AdaptedModel, encoded: Inputs) -> PrefixCache:
        found = self._held.pop(key, None) or PrefixCache(
            classifier, encoded, limit_bytes=key.limit_bytes, states=key.states
        )
        self._held[key] = found
        while self._size() > self.limit_bytes and len(self._held) > 1:
            gone, _ = self._held.popitem(last=False)
            self._places.pop(gone, None)
        return found

    def _size(self) -> int:
        return sum(cache.size_bytes for cache in self._held.values())


def _key(
    classifier: AdaptedModel, encoded: Inputs, backbone: Backbone, limit: int, states: bool
) -> _Key:
    model = backbone.sha256 + backbone.settings_sha256
    depth = classifier.prefix.depth
    return _Key(model, depth, classifier.vector, limit, states, encoded.digest())


SHELF = CacheShelf()
"""The process's caches."""


@torch.no_grad()
def predict_logits(classifier: PooledModel, cache: PrefixCache) -> torch.Tensor:
    """Outputs (n, C) of all records of the cache, in their order."""
    logits = torch.empty(len(cache.encoded), classifier.head.out_features)
    for rows in micro_batches(np.arange(len(cache.encoded)), cache.lengths):
        logits[torch.from_numpy(rows)] = cache.outputs(classifier, rows)
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
    all when omitted."""
    rows = np.arange(len(cache.encoded)) if rows is None else rows
    found = torch.zeros(len(rows), task.judgement_width, dtype=torch.float64)
    for places in micro_batches(np.arange(len(rows)), cache.lengths[rows]):
        part = task.judge(cache.outputs(model, rows[places]), targets, rows[places])
        found[torch.from_numpy(places)] = part
    return found


@torch.no_grad()
def predictions(task: Task, model: AdaptedModel, cache: PrefixCache) -> list[Prediction]:
    """The task's predictions for all records of the cache, in their order."""
    found: dict[int, Prediction] = {}
    for rows in micro_batches(np.arange(len(cache.encoded)), cache.lengths):
        answers = task.predictions(cache.outputs(model, rows), cache.encoded, rows)
        found.update(zip(rows.tolist(), answers, strict=True))
    return [found[row] for row in range(len(cache.encoded))]
