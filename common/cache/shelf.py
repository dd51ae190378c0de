"""The caches of one process, by content: sites, runs and evaluations with the same texts share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import torch

from lorica.common.backbone.loading import Backbone
from lorica.common.cache.batching import least_rows
from lorica.common.cache.files import CacheFolder
from lorica.common.cache.prefix import CACHE_BYTES, PrefixCache
from lorica.common.machine.processor import processor
from lorica.common.tasks.inputs import Encoded, Inputs
from lorica.common.tasks.model import AdaptedModel
from lorica.common.version import __version__


@dataclass(frozen=True)
class _Key:
    model: str
    depth: int
    vector: bool
    numbers: torch.dtype
    norms: str
    limit_bytes: int
    states: bool
    texts: bytes
    longest: int
    least_rows: int
    threads: int

    @property
    def name(self) -> str:
        """What cached values depend on, in words: model, split, texts, and what may give other
        bits of the same text: shapes, threads, the processor, the library's version."""
        below = f"{self.model} below layer {self.depth}"
        if self.numbers != torch.float32:
            below += f" in {self.numbers}"
        if self.norms:
            below += f" with batch norms {self.norms}"
        rows = f"in canonical batches of {self.least_rows} rows or more"
        vectors = torch.backends.cpu.get_cpu_capability()
        by = f"torch {torch.__version__}, transformers {version('transformers')}, {__version__}"
        how = f"by {self.threads} threads of {processor()}, {vectors}, {by}"
        return f"{below} of {self.texts.hex()} {rows} {how}"

    def serves(self, other: _Key) -> bool:
        """Whether this cache's records are kept as the other's would be."""
        mine = replace(self, limit_bytes=0, states=False, texts=b"")
        others = replace(other, limit_bytes=0, states=False, texts=b"")
        return mine == others and (self.states or not other.states)


class CacheView(PrefixCache):
    """Some records of a cache that is kept whole: what one site sees of a data set's."""

    def __init__(self, whole: PrefixCache, encoded: Inputs, places: list[int]) -> None:
        """``places``: the row in ``whole`` of every record of ``encoded``."""
        self.encoded = encoded
        self.lengths, self.sizes = encoded.lengths, encoded.sizes
        self.whole, self.places = whole, np.array(places, dtype=np.int64)

    @property
    def size_bytes(self) -> int:
        """Memory the view holds beside the whole: none worth counting."""
        return 0

    def features(self, classifier: AdaptedModel, rows: np.ndarray) -> torch.Tensor:
        """As of the whole."""
        return self.whole.features(classifier, self.places[rows])


def joined(
    parts: Sequence[tuple[PrefixCache, np.ndarray]],
) -> tuple[PrefixCache, np.ndarray] | None:
    """One cache that has all of these rows of several, and where it has them, shape (n,); None
    where there is none: they are not all views of one."""
    wholes = {id(cache.whole): cache.whole for cache, _ in parts if isinstance(cache, CacheView)}
    if len(wholes) != 1:
        return None
    places = [cache.places[rows] for cache, rows in parts if isinstance(cache, CacheView)]
    if len(places) != len(parts):
        return None
    return next(iter(wholes.values())), np.concatenate(places)


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
        self._folder: CacheFolder | None = None

    @property
    def in_files(self) -> bool:
        """Whether what is made is kept in files."""
        return self._folder is not None

    def keep_in(self, folder: CacheFolder | None) -> None:
        """Keep what is made from now on in files of a folder; None: in memory again."""
        with self._lock:
            self._folder = folder
            self._held.clear()
            self._places.clear()

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
        self,
        classifier: AdaptedModel,
        encoded: Inputs,
        *,
        backbone: Backbone,
        states: bool,
        pooled: bool = False,
        hands: int = 1,
    ) -> None:
        """Keep one cache of a whole data set while there is room: later :meth:`get` for any part
        of it gives a view. For simulations, whose sites have parts of one data set.

        Args:
            classifier: as for :meth:`get`, like the others.
            encoded: all the texts; inputs of other kinds are left to :meth:`get`.
            backbone: the classifier's.
            states: as for :class:`PrefixCache`.
            pooled: compute the features of the backbone as it came, too, and not only when they
                are asked for.
            hands: as for :class:`PrefixCache`.
        """
        if not isinstance(encoded, Encoded):
            return
        rows: dict[bytes, int] = {}
        firsts: list[np.ndarray] = []
        for ids in encoded.tokens:  # a text that occurs again is computed and kept once
            if rows.setdefault(ids.tobytes(), len(firsts)) == len(firsts):
                firsts.append(ids)
        if len(firsts) < len(encoded):
            encoded = Encoded(firsts, limit=encoded.limit)
        key = _key(classifier, encoded, backbone, self.limit_bytes, states)
        with self._lock:
            cache = self._made(key, classifier, encoded, hands)
            if pooled:
                cache.fill(classifier)
            self._places[key] = rows

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

    def _made(
        self, key: _Key, classifier: AdaptedModel, encoded: Inputs, hands: int = 1
    ) -> PrefixCache:
        found = self._held.pop(key, None)
        if found is None:
            found = PrefixCache(
                classifier,
                encoded,
                limit_bytes=key.limit_bytes,
                states=key.states,
                files=(self._folder, key.name) if self._folder else None,
                hands=hands,
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
    depth = classifier.prefix.depth
    return _Key(
        backbone.identity,
        depth,
        classifier.vector,
        classifier.numbers,
        classifier.norms,
        limit,
        states,
        encoded.digest(),
        encoded.limit,
        least_rows(),
        torch.get_num_threads(),
    )


SHELF = CacheShelf()
"""The process's caches."""
