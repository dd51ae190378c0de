"""The unit of privacy: whose records are added or removed together.

Formal guarantee:
    *Neighbouring relation*: two data sets are neighbours when one is the other with all records
    of one unit (a patient, a customer; or a single record) added or removed. Units are drawn
    independently with probability q. A drawn unit brings at most ``most`` of its records,
    chosen uniformly at random and anew in every step; their gradients are averaged to the
    unit's one gradient, and that is clipped to C. So a unit changes the clipped sum by at most
    C whatever the number of its records, and the step is the Poisson-subsampled Gaussian
    mechanism over units (:mod:`lorica.client.mechanism.dp_sgd`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lorica.client.mechanism.noise import NoiseSource
from lorica.common.cache.batching import TOKEN_BUDGET, cuts, runs

Drawn = list[np.ndarray]
"""Rows of the records that each drawn unit brings to a step, at least one each."""


class Units:
    """The records of every unit."""

    def __init__(self, names: Sequence[str], *, most: int) -> None:
        """
        Args:
            names: the unit of every record, shape (N,).
            most: largest number of records a unit brings to one step, at least 1.
        """
        order: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            order.setdefault(name, []).append(row)
        self._rows = [np.array(rows, dtype=np.int64) for rows in order.values()]
        self._most = most

    @classmethod
    def of_records(cls, count: int) -> Units:
        """Every record its own unit."""
        units = cls([], most=1)
        units._rows = list(np.arange(count, dtype=np.int64)[:, None])
        return units

    def __len__(self) -> int:
        return len(self._rows)

    def draw(self, noise: NoiseSource, rate: float) -> Drawn:
        """The units of one Poisson batch, each drawn with probability ``rate``."""
        mask = noise.poisson_mask(len(self._rows), rate).numpy()
        return [self._choose(self._rows[unit], noise) for unit in np.flatnonzero(mask)]

    def _choose(self, rows: np.ndarray, noise: NoiseSource) -> np.ndarray:
        if len(rows) <= self._most:
            return rows
        keys = noise.gaussian((len(rows),), 1.0).numpy()  # ranks of i.i.d. draws: a fair shuffle
        return rows[np.argsort(keys, kind="stable")[: self._most]]


def unit_batches(
    drawn: Drawn, lengths: np.ndarray, token_budget: int = TOKEN_BUDGET, *, mixed: bool = True
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Divide drawn units into micro-batches within a token budget; no unit is split.

    Units are sorted by their longest text and cut where the padding that is saved is worth a
    batch more.

    Args:
        drawn: rows of every drawn unit.
        lengths: tokens of every record, shape (N,).
        token_budget: largest number of rows × longest length; a unit larger than that has a
            batch of its own.
        mixed: whether units whose longest texts differ may share a batch. If not, what a unit is
            padded to depends on that unit alone.

    Yields:
        rows of the batch, shape (n,), and the number within the batch of every row's unit,
        shape (n,); units with the longest texts first.
    """
    longest = np.array([lengths[rows].max() for rows in drawn], dtype=np.int64)
    order = np.argsort(-longest, kind="stable")
    sizes = np.array([len(drawn[unit]) for unit in order], dtype=np.int64)
    for part in [np.arange(len(order))] if mixed else runs(longest[order]):
        for first, end in cuts(longest[order[part]], sizes[part], token_budget):
            yield joined([drawn[unit] for unit in order[part[first:end]]])


def average_by_unit(per_record: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Gradients (n, …) of records to those of their units (g, …): the mean over each unit's.

    ``owner`` (n,) numbers the units from 0 without gaps. In float64 sums, so that the order of
    records does not matter.
    """
    count = torch.bincount(owner)
    if len(count) == len(owner):
        return per_record
    total = torch.zeros(len(count), *per_record.shape[1:], dtype=torch.float64)
    total.index_add_(0, owner, per_record.double())
    return total / count.reshape(-1, *[1] * (per_record.dim() - 1))


def joined(drawn: Drawn) -> tuple[np.ndarray, torch.Tensor]:
    """Rows of all drawn units, shape (n,), and the number of every row's unit, shape (n,)."""
    owner = np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn])
    rows = np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)
    return rows, torch.from_numpy(owner)
