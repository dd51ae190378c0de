"""The randomness of augmented views: a record's own, whatever other records there are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


class ViewNumbers:
    """Uniform numbers for the views of records.

    A view's numbers are a function of a key, the step, the record's content and the view's own
    number; so they depend on no other record, on no order and on no batch. To whoever does not
    have the key they are independent and uniform (BLAKE2b as a keyed function).
    """

    def __init__(self, key: bytes) -> None:
        """``key``: at most 64 bytes, as hard to guess as the views are to be."""
        self._key = key
        self.step = 0
        """Set it anew for every step."""

    def next_step(self, taken: int) -> None:
        """Go on after so many steps."""
        self.step = taken

    def of(self, contents: Sequence[bytes], views: np.ndarray, count: int) -> np.ndarray:
        """float32 in [0, 1), shape (n, count).

        Args:
            contents: stands for the record of every row.
            views: the number of every row's view, shape (n,).
            count: numbers of a view, at most 16.
        """
        found = np.empty((len(views), count), dtype=np.float32)
        for place, (content, view) in enumerate(zip(contents, views.tolist(), strict=True)):
            told = f"{self.step} {view} ".encode() + content
            words = hashlib.blake2b(told, key=self._key, digest_size=4 * count).digest()
            # 24 bits: as many as float32 holds, so that none becomes 1.
            found[place] = (np.frombuffer(words, dtype="<u4") >> 8) * np.float32(2.0**-24)
        return found
