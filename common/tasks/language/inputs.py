"""Token sequences in which some tokens are to be told from the states at given positions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorica.common.tasks.inputs import Encoded
from lorica.common.tasks.shapes import padded

IGNORED = -100
"""Stands for no token where sequences of targets are padded."""


@dataclass(frozen=True)
class AskedTokens(Encoded):
    """Tokenised texts, ragged, and where in them the model is asked for a token."""

    positions: list[np.ndarray]
    """One int64 array per text: the states that tokens are told from, each below its length."""

    @property
    def sizes(self) -> np.ndarray:
        """Tokens, and places asked about, per text, shape (n, 2)."""
        asked = np.array([len(places) for places in self.positions], dtype=np.int64)
        return np.stack([self.lengths, asked], axis=1)

    def places(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Positions (n, P) of these rows, padded with 0 to the canonical length of the longest."""
        chosen = [self.positions[row] for row in rows]
        return _filled(chosen, 0, int(padded(max(map(len, chosen)), self.limit)))

    def digest(self) -> bytes:
        """SHA-256 of lengths, tokens and positions."""
        found = hashlib.sha256(super().digest())
        found.update(np.array([len(asked) for asked in self.positions], dtype=np.int64).tobytes())
        for asked in self.positions:
            found.update(asked.tobytes())
        return found.digest()


@dataclass(frozen=True)
class TokenTargets:
    """The tokens that were asked for, one array per record."""

    tokens: list[np.ndarray]
    """As long as the record's positions."""

    def __len__(self) -> int:
        return len(self.tokens)

    def of(self, rows: Sequence[int] | np.ndarray, width: int = 0) -> torch.Tensor:
        """Those of these rows, shape (n, P), padded with ``IGNORED``; P is the longest's length,
        and at least ``width``."""
        chosen = [self.tokens[row] for row in rows]
        return _filled(chosen, IGNORED, max(width, *map(len, chosen)))


def picked(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The states (n, P, H) at places (n, P) among states (n, T, H)."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


def _filled(arrays: list[np.ndarray], filler: int, width: int) -> torch.Tensor:
    found = np.full((len(arrays), width), filler, dtype=np.int64)
    for position, array in enumerate(arrays):
        found[position, : len(array)] = array
    return torch.from_numpy(found)
