"""Short texts behind one another in few rows: a batch without padding, for use.

Texts of a batch are laid into rows of about ``WIDTH`` tokens. A token attends to those of its own
text alone (a mask of blocks), and has the place that it has there, so that every text's states are
those that it has alone, up to float32's rounding. What is saved is the padding, a third and more of
a batch of short texts; what it costs is attention over a row instead of over a text, little where
texts are short.

It holds for encoders that take a mask of pairs and the places of tokens as they are given. Which do
is *tried*: texts in a row must come out as they do apart. One that fails pads, as in training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lorica.common.backbone.precision import computing_in
from lorica.common.tasks.inputs import Encoded
from lorica.common.tasks.model import AdaptedModel

WIDTH = 128
"""Tokens of a row."""

LONGEST = WIDTH // 2
"""Tokens of the longest text that shares a row."""

_TRIED = (LONGEST, 40, 3, 30, 1, 17)
_TOLERANCE = 1e-4
"""Of the largest state: float32's rounding over all layers, in other orders of adding."""


class Packing:
    """How an encoder is given texts in rows."""

    def __init__(self, padding: int | None = None) -> None:
        """``padding``: of encoders that count places from behind their token of padding (RoBERTa),
        its id; None where the first place is 0, as for most."""
        self.padding = padding

    def _places(self, ids: np.ndarray) -> np.ndarray:
        """Numbers of a text's places, for its ids (t,)."""
        if self.padding is None:
            return np.arange(len(ids))
        real = ids != self.padding
        return self.padding + np.cumsum(real) * real

    def states(
        self, encoder: Any, texts: Sequence[np.ndarray]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token states and mask of texts, (n, T, H) and int64 (n, T), T the longest's tokens.

        Args:
            encoder: a transformers model.
            texts: token ids of each, int64 (t,), none of no token.
        """
        lengths = [len(text) for text in texts]
        row, first, width = _rows(lengths)
        which = np.repeat(np.arange(len(texts)), lengths)
        place = np.concatenate([np.arange(length) for length in lengths])
        at = torch.from_numpy(row[which]), torch.from_numpy(first[which] + place)
        shape = int(row.max()) + 1, width
        ids = torch.zeros(shape, dtype=torch.int64)
        places = torch.zeros(shape, dtype=torch.int64)
        whose = torch.full(shape, -1, dtype=torch.int64)  # what is free attends to what is free
        ids[at] = torch.from_numpy(np.concatenate(list(texts)))
        places[at] = torch.from_numpy(np.concatenate([self._places(text) for text in texts]))
        whose[at] = torch.from_numpy(which)
        together = (whose[:, :, None] == whose[:, None, :])[:, None]
        found = encoder(input_ids=ids, attention_mask=together, position_ids=places)
        states = found.last_hidden_state
        own = torch.from_numpy(which), torch.from_numpy(place)
        mask = torch.zeros((len(texts), max(lengths)), dtype=torch.int64)
        given = states.new_zeros((*mask.shape, states.shape[-1]))
        mask[own] = 1
        given[own] = states[at]
        return given, mask

    def pooled(self, model: AdaptedModel, encoded: Encoded, rows: np.ndarray) -> torch.Tensor:
        """What :meth:`AdaptedModel.pooled_of_ids` gives for these texts."""
        with computing_in(model.numbers):
            states, mask = self.states(model.encoder, [encoded.tokens[row] for row in rows])
        return model.pool(states.float(), mask)


def packing_of(model: AdaptedModel, limit: int) -> Packing | None:
    """How this model's encoder takes texts in rows; None where it does not, or where what it reads
    is no text.

    Args:
        model: in eval mode, computing in float32.
        limit: tokens of the longest text that it takes.
    """
    if type(model).pooled_of_ids is not AdaptedModel.pooled_of_ids or not model.vector:
        return None
    words = int(getattr(model.encoder.get_input_embeddings(), "num_embeddings", 0))
    if words < 2:
        return None
    draw = np.random.default_rng(0)
    texts = [draw.integers(1, words, size=min(length, limit)) for length in _TRIED]
    padding = getattr(model.encoder.config, "pad_token_id", None)
    for packing in map(Packing, dict.fromkeys((None, padding))):
        if _agrees(packing, model.encoder, texts):
            return packing
    return None


@torch.inference_mode()
def _agrees(packing: Packing, encoder: Any, texts: list[np.ndarray]) -> bool:
    try:
        states, _ = packing.states(encoder, texts)
        for text, found in zip(texts, states, strict=True):
            ids = torch.from_numpy(text)[None]
            alone = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            away = (found[: len(text)] - alone[0]).abs().max()
            if not away <= _TOLERANCE * alone.abs().max():
                return False
    except (TypeError, AttributeError, RuntimeError, ValueError, IndexError, KeyError):
        return False
    return True


def packs(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Texts that are computed together, by number; each comes once, the longest first.

    Args:
        lengths: tokens of each text, shape (N,), at most ``LONGEST`` each.
        budget: tokens of the largest batch.
    """
    order = np.argsort(-lengths, kind="stable")
    part = np.cumsum(lengths[order]) // max(1, budget)
    for number in np.unique(part):
        yield order[part == number]


def _rows(lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray, int]:
    """Row and first place there of each text, and the rows' width: the longest first, each into the
    row that is emptiest."""
    count = math.ceil(sum(lengths) / max(WIDTH, *lengths))
    filled = np.zeros(count, dtype=np.int64)
    row, first = np.zeros((2, len(lengths)), dtype=np.int64)
    for text in np.argsort(-np.asarray(lengths), kind="stable"):
        row[text] = chosen = int(filled.argmin())
        first[text] = filled[chosen]
        filled[chosen] += lengths[text]
    return row, first, int(filled.max())
