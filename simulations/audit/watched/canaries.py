"""Canaries: units whose gradient the auditor chooses, and the directions it is chosen along.

A canary's *direction* w is a unit vector over all trained values. The site clips the gradient of
every group of parameters j to its own C_j with Σ C_j² = C², so w has length C_j / C in group j:
clipped, a canary's gradient is C·w and uses the whole sensitivity, in every group. Unclipped it
is OVERSIZE times that, so that clipping which does not happen shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from lorica.common.errors import Code, LoricaError

OVERSIZE = 10.0
"""Norm of a canary's gradient before clipping, in clip norms."""


@dataclass(frozen=True)
class Layout:
    """The trained values as one vector: which clip group each belongs to."""

    names: Sequence[str]
    """Names of the trained tensors, in the order in which they are laid out."""
    groups: Sequence[np.ndarray]
    """Positions of every group's values, each an int64 array; together 0 to size - 1."""
    clip_norms: Sequence[float]
    """C_j of every group."""

    @property
    def size(self) -> int:
        """d: number of trained values."""
        return sum(map(len, self.groups))

    @property
    def clip_norm(self) -> float:
        """C: bound on the norm of a unit's whole gradient."""
        return math.hypot(*self.clip_norms)

    @property
    def shares(self) -> list[float]:
        """C_j / C of every group."""
        return [bound / self.clip_norm for bound in self.clip_norms]


class Directions(Protocol):
    """Unit vectors, one for every canary."""

    def __len__(self) -> int: ...

    def vectors(self, which: np.ndarray) -> torch.Tensor:
        """Those of these canaries: float32, shape (n, d)."""
        ...

    def project(self, vector: torch.Tensor) -> np.ndarray:
        """Inner products of ``vector`` (d,) with all: float64, shape (len,)."""
        ...


class Coordinates:
    """Directions along coordinates of their own: exactly orthogonal ("Dirac" canaries).

    Every canary owns as many coordinates of each group as there are for all, chosen at random.
    Noise that is independent over coordinates is independent over these canaries.
    """

    def __init__(self, count: int, layout: Layout, generator: np.random.Generator) -> None:
        """
        Raises:
            LoricaError: LOR-103 when a group has fewer values than there are canaries.
        """
        smallest = min(map(len, layout.groups))
        if count > smallest:
            raise LoricaError(
                Code.PLAN_BAD_VALUE,
                f"{count} canaries and reference directions need as many trained values in every "
                f"clip group; the smallest has {smallest}.",
                mend="Audit with fewer --canaries, or a plan with a larger adapter.",
            )
        positions, values = [], []
        for group, share in zip(layout.groups, layout.shares, strict=True):
            each = min(len(group) // count, _MOST_EACH)
            own = generator.permutation(group)[: count * each].reshape(count, each)
            positions.append(own)
            values.append(np.full((count, each), share / math.sqrt(each)))
        self._positions = torch.from_numpy(np.concatenate(positions, axis=1))
        self._values = torch.from_numpy(np.concatenate(values, axis=1))
        self._size = layout.size

    def __len__(self) -> int:
        return len(self._positions)

    def vectors(self, which: np.ndarray) -> torch.Tensor:
        rows = torch.from_numpy(which)
        dense = torch.zeros(len(which), self._size)
        return dense.scatter_(1, self._positions[rows], self._values[rows].float())

    def project(self, vector: torch.Tensor) -> np.ndarray:
        return (vector.double()[self._positions] * self._values).sum(1).numpy()


class RandomDirections:
    """Uniformly random directions within every group, as good as orthogonal in many dimensions."""

    def __init__(self, count: int, layout: Layout, generator: np.random.Generator) -> None:
        self._matrix = torch.zeros(count, layout.size)
        for group, share in zip(layout.groups, layout.shares, strict=True):
            drawn = generator.standard_normal((count, len(group)), dtype=np.float32)
            drawn *= share / np.linalg.norm(drawn, axis=1, keepdims=True)
            self._matrix[:, torch.from_numpy(group)] = torch.from_numpy(drawn)

    def __len__(self) -> int:
        return len(self._matrix)

    def vectors(self, which: np.ndarray) -> torch.Tensor:
        return self._matrix[torch.from_numpy(which)]

    def project(self, vector: torch.Tensor) -> np.ndarray:
        return (self._matrix @ vector.float()).double().numpy()


class Entries:
    """One entry each of a matrix (C, H): exactly orthogonal, and of rank one, as the contribution
    of a record to a release on frozen features is. Noise that is independent over entries is
    independent over these canaries."""

    def __init__(self, count: int, shape: tuple[int, int], generator: np.random.Generator) -> None:
        """
        Raises:
            LoricaError: LOR-103 when the matrix has fewer entries than there are canaries.
        """
        room = shape[0] * shape[1]
        if count > room:
            raise LoricaError(
                Code.PLAN_BAD_VALUE,
                f"{count} canaries and reference directions need as many weights of the head; it "
                f"has {room}.",
                mend="Audit with fewer --canaries.",
            )
        own = generator.permutation(room)[:count]
        self._rows, self._columns = (
            torch.from_numpy(own // shape[1]),
            torch.from_numpy(own % shape[1]),
        )

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, which: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of these canaries' entries: int64, shape (n,) each."""
        return self._rows[which], self._columns[which]

    def project(self, matrix: torch.Tensor) -> np.ndarray:
        """The entries' values in ``matrix`` (C, H): float64, shape (len,)."""
        return matrix.double()[self._rows, self._columns].numpy()


def fair_coins(count: int, generator: np.random.Generator) -> np.ndarray:
    """Which of ``count`` canaries are in the data: bool, shape (count,)."""
    return generator.random(count) < 0.5


_MOST_EACH = 8  # coordinates of a group that one canary owns
