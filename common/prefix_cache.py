"""What is frozen is computed once: token states below the lowest adapted layer, or features.

The layers below the lowest adapted one are frozen, so their output for a record never changes.
It is kept as one float32 array over all tokens of all records, without padding. When the
whole encoder is frozen (adapter kind "head") only the features are kept, one row per record.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from lorica.common.batching import micro_batches
from lorica.common.memory import release_unused
from lorica.common.tasks.text_classification import Encoded, TextClassifier, collate

CACHE_BYTES = 2**30
"""Memory for the cached states of one process's data sets together, bytes."""

_FLOAT_BYTES = 4


class PrefixCache:
    """Features of records by row; the frozen part is computed once when it fits in memory.

    A cache belongs to one data set and to any number of classifiers with the same backbone and
    the same adapted layers.
    """

    def __init__(
        self, classifier: TextClassifier, encoded: Encoded, *, limit_bytes: int = CACHE_BYTES
    ) -> None:
        """Compute the frozen part of all records if it fits in ``limit_bytes``, else none."""
        self.encoded = encoded
        self.lengths = encoded.lengths
        self._features: torch.Tensor | None = None
        self._states: torch.Tensor | None = None
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        width = classifier.head.in_features
        room = limit_bytes // (_FLOAT_BYTES * width)  # rows of the cache
        if classifier.frozen and len(encoded) <= room:
            self._features = self._fill_features(classifier, width)
        elif classifier.prefix.depth and self._starts[-1] <= room:
            self._states = self._fill_states(classifier, width)
        release_unused()

    @property
    def size_bytes(self) -> int:
        """Memory the cache holds, bytes."""
        held = [tensor for tensor in (self._features, self._states) if tensor is not None]
        return sum(tensor.numel() * _FLOAT_BYTES for tensor in held)

    def features(self, classifier: TextClassifier, rows: np.ndarray) -> torch.Tensor:
        """Unit-norm features (n, H) of ``rows``, differentiable in the adapter."""
        if self._features is not None:
            return self._features[torch.from_numpy(rows)]
        if self._states is not None:
            spans = [self._states[self._starts[row] : self._starts[row + 1]] for row in rows]
            lengths = torch.from_numpy(self.lengths[rows])
            hidden = pad_sequence(spans, batch_first=True)
            mask = (torch.arange(hidden.shape[1])[None] < lengths[:, None]).long()
            return classifier.features(hidden, mask)
        return classifier.features_of_ids(*collate(self.encoded, rows))

    def _fill_states(self, classifier: TextClassifier, width: int) -> torch.Tensor:
        states = torch.empty(int(self._starts[-1]), width)
        for rows in micro_batches(np.arange(len(self.encoded)), self.lengths):
            hidden = classifier.prefix.hidden(*collate(self.encoded, rows))
            for position, row in enumerate(rows):
                span = states[self._starts[row] : self._starts[row + 1]]
                span.copy_(hidden[position, : len(span)])
        return states

    @torch.no_grad()
    def _fill_features(self, classifier: TextClassifier, width: int) -> torch.Tensor:
        features = torch.empty(len(self.encoded), width)
        for rows in micro_batches(np.arange(len(self.encoded)), self.lengths):
            batch = classifier.features_of_ids(*collate(self.encoded, rows))
            features[torch.from_numpy(rows)] = batch
        return features


@torch.no_grad()
def predict_logits(classifier: TextClassifier, cache: PrefixCache) -> torch.Tensor:
    """Logits (n, C) of all records of the cache, in their order."""
    logits = torch.empty(len(cache.encoded), classifier.head.out_features)
    for rows in micro_batches(np.arange(len(cache.encoded)), cache.lengths):
        logits[torch.from_numpy(rows)] = classifier.head(cache.features(classifier, rows))
    return logits
