"""Counts over a stream in bounded memory: lengths, equal texts, records of a unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

LONGEST = 1 << 16
"""Lengths from here on are counted together."""

MOST_KEPT = 1 << 25
"""Rows kept by one tally, 12 bytes each, and as much again while they are sorted."""


class Lengths:
    """How many texts have which length."""

    def __init__(self) -> None:
        self._counts = np.zeros(LONGEST + 1, dtype=np.int64)
        self.longest = 0

    def add(self, lengths: np.ndarray) -> None:
        """Count lengths, shape (n,), int."""
        if len(lengths):
            self.longest = max(self.longest, int(lengths.max()))
            cut = np.minimum(lengths, LONGEST)
            self._counts += np.bincount(cut, minlength=LONGEST + 1)

    def quantile(self, share: float) -> int:
        """The least length that at least ``share`` of all texts do not pass."""
        total = self._counts.sum()
        if not total:
            return 0
        found = int(np.searchsorted(np.cumsum(self._counts), max(1, share * total)))
        return found if found < LONGEST else self.longest

    def as_dict(self) -> dict[str, int]:
        """Median, 95 %, 99 % and the longest."""
        named = {"median": 0.5, "p95": 0.95, "p99": 0.99}
        return {name: self.quantile(share) for name, share in named.items()} | {
            "longest": self.longest
        }


@dataclass(frozen=True)
class Groups:
    """Rows that share a key."""

    keys: int
    """Number of keys."""
    repeated: int
    """Rows beyond the first of every key."""
    sizes: dict[int, int]
    """Bound -> number of keys that more than so many rows have."""
    largest: int
    mixed: int
    """Keys whose rows have more than one second value."""
    exact: bool
    """Whether every key was counted; else the numbers are estimates from a sample of keys."""


class KeyTally:
    """How many rows share a key, and whether their second values differ.

    Keys are kept as 64-bit hashes (SipHash under a key of this process: among 10^7 texts two
    share a hash with probability 3e-6), second values as 32 bits of theirs. Past ``most`` rows
    only the keys whose hash ends in k zero bits are kept, with *all* of their rows, and counts are
    multiplied by 2^k: every key is kept with the same probability, whatever its number of rows, so
    the estimates of counts over keys are unbiased.
    """

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._bits = 0
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []
        self._rows = 0

    def add(self, keys: Iterable[object] | np.ndarray, values: np.ndarray) -> None:
        """Count rows by their keys (objects to hash, or hashes) with a second value each, int64."""
        hashes = keys if isinstance(keys, np.ndarray) else hashed(keys)
        self._keep(hashes, values.astype(np.int32))
        while self._rows > self._most:
            self._bits += 1
            kept, self._kept, self._rows = self._kept, [], 0
            for part in kept:
                self._keep(*part)

    def _keep(self, keys: np.ndarray, values: np.ndarray) -> None:
        if self._bits:
            chosen = keys & ((1 << self._bits) - 1) == 0
            keys, values = keys[chosen], values[chosen]
        self._kept.append((keys, values))
        self._rows += len(keys)

    def groups(self, bounds: tuple[int, ...] = ()) -> Groups:
        """The counts; frees what was kept."""
        none = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32)
        keys, values = (np.concatenate(part) for part in zip(*(self._kept or [none]), strict=True))
        self._kept = []
        order = np.lexsort((values, keys))
        keys, values = keys[order], values[order]
        del order
        new = np.ones(len(keys), dtype=np.bool_)
        new[1:] = keys[1:] != keys[:-1]
        starts = np.flatnonzero(new)
        sizes = np.diff(np.append(starts, len(keys)))
        changes = np.zeros(len(keys), dtype=np.bool_)
        changes[1:] = (values[1:] != values[:-1]) & ~new[1:]
        mixed = int(np.logical_or.reduceat(changes, starts).sum()) if len(starts) else 0
        scale = 1 << self._bits
        return Groups(
            keys=len(starts) * scale,
            repeated=(len(keys) - len(starts)) * scale,
            sizes={bound: int((sizes > bound).sum()) * scale for bound in bounds},
            largest=int(sizes.max()) if len(sizes) else 0,
            mixed=mixed * scale,
            exact=not self._bits,
        )


def hashed(keys: Iterable[object]) -> np.ndarray:
    """64-bit hashes, shape (n,), int64."""
    return np.fromiter(map(hash, keys), dtype=np.int64)


def mixed_hash(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A hash of pairs of hashes, shape (n,), int64."""
    with np.errstate(over="ignore"):
        spread = first.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        folded = (spread ^ (spread >> np.uint64(29))) + second.view(np.uint64)
        folded *= np.uint64(0xBF58476D1CE4E5B9)
    return (folded ^ (folded >> np.uint64(32))).view(np.int64)
