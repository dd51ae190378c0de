"""What models read: tokenised texts, ragged, and their padded batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from lorica.common.backbone.loading import Backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.tasks.shapes import UNLIMITED, padded

_TOKENIZE_CHUNK = 1000


class Inputs(Protocol):
    """The encoded records of one data set."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens (or patches) per record, shape (N,), int64: what a record costs."""
        ...

    @property
    def sizes(self) -> np.ndarray:
        """What of a record decides the shape it is computed in, shape (N, d), int64; the first is
        its length (:mod:`lorica.common.tasks.shapes`)."""
        ...

    @property
    def limit(self) -> int:
        """The longest that a record could be, by plan and model; nothing is padded beyond."""
        ...

    def __len__(self) -> int: ...

    def collate(self, rows: Iterable[int]) -> tuple[torch.Tensor, ...]:
        """The arguments of the model's ``states_of`` for these rows, in the canonical shape of
        the largest of them."""
        ...

    def digest(self) -> bytes:
        """A hash of all that the model reads."""
        ...


@dataclass(frozen=True)
class Encoded:
    """Tokenised texts, ragged: texts are token-id arrays of their own lengths."""

    tokens: list[np.ndarray]
    """One int64 array per text, special tokens included, at most ``limit`` long."""
    limit: int = field(default=UNLIMITED, kw_only=True)
    """The longest that a text could be, by plan and model, tokens."""

    @property
    def sizes(self) -> np.ndarray:
        """Tokens per text, shape (n, 1)."""
        return self.lengths[:, None]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per text, shape (n,)."""
        return np.array([len(ids) for ids in self.tokens], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.tokens)

    def collate(self, rows: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad the texts of ``rows`` to the canonical length of the longest of them.

        Returns:
            input ids and attention mask, both int64, shape (n, T).
        """
        return collate(self, rows)

    def digest(self) -> bytes:
        """SHA-256 of limit, lengths and tokens."""
        found = hashlib.sha256(repr(self.limit).encode() + self.lengths.tobytes())
        for tokens in self.tokens:
            found.update(tokens.tobytes())
        return found.digest()


def encode(backbone: Backbone, texts: Sequence[str], max_length: int) -> Encoded:
    """Tokenise texts, cut to ``max_length`` tokens or what the model takes, without padding."""
    limit = min(max_length, backbone.max_length)
    tokens: list[np.ndarray] = []
    for start in range(0, len(texts), _TOKENIZE_CHUNK):
        chunk = list(texts[start : start + _TOKENIZE_CHUNK])
        ids = backbone.tokenizer(chunk, truncation=True, max_length=limit)["input_ids"]
        tokens += [np.asarray(row, dtype=np.int64) for row in ids]
    return Encoded(tokens, limit=limit)


def encode_with_offsets(
    backbone: Backbone, texts: Sequence[str], max_length: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """As :func:`encode`, with the place of every token in its text.

    Returns:
        token ids per text, and per text int64 (T, 2): first character, and the one after the
        last; both 0 for special tokens.

    Raises:
        LoricaError: LOR-221 when the tokenizer keeps no places.
    """
    if not getattr(backbone.tokenizer, "is_fast", False):
        raise LoricaError(
            Code.TOKENIZER_OFFSETS,
            f"The backbone's tokenizer ({type(backbone.tokenizer).__name__}) cannot say where its "
            "tokens are in the text.",
        )
    limit = min(max_length, backbone.max_length)
    tokens: list[np.ndarray] = []
    places: list[np.ndarray] = []
    for start in range(0, len(texts), _TOKENIZE_CHUNK):
        chunk = list(texts[start : start + _TOKENIZE_CHUNK])
        found = backbone.tokenizer(
            chunk, truncation=True, max_length=limit, return_offsets_mapping=True
        )
        tokens += [np.asarray(row, dtype=np.int64) for row in found["input_ids"]]
        places += [
            np.asarray(row, dtype=np.int64).reshape(-1, 2) for row in found["offset_mapping"]
        ]
    return tokens, places


def collate(encoded: Encoded, rows: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """As :meth:`Encoded.collate`."""
    chosen = [encoded.tokens[row] for row in rows]
    width = int(padded(max(map(len, chosen)), encoded.limit))
    ids = np.zeros((len(chosen), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    for position, row in enumerate(chosen):
        ids[position, : len(row)] = row
        mask[position, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
