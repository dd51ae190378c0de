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

from collections.abc import Sequence

import numpy as np
import torch

from lorica.client.mechanism.noise import NoiseSource

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
        self._plain = False  # every record its own unit

    @property
    def grouped(self) -> bool:
        """Whether a unit may bring several records: by the plan, whatever the data."""
        return self._most > 1

    @classmethod
    def of_records(cls, count: int) -> Units:
        """Every record its own unit."""
        units = cls([], most=1)
        units._rows = list(np.arange(count, dtype=np.int64)[:, None])
        units._plain = True
        return units

    def __len__(self) -> int:
        return len(self._rows)

    def draw_rows(self, noise: NoiseSource, rate: float) -> tuple[np.ndarray, torch.Tensor]:
        """The same as :func:`joined` gives it."""
        if not self._plain:
            return joined(self.draw(noise, rate))
        rows = np.flatnonzero(noise.poisson_mask(len(self._rows), rate).numpy())
        return rows, torch.arange(len(rows))

    def draw(self, noise: NoiseSource, rate: float) -> Drawn:
        """The units of one Poisson batch, each drawn with probability ``rate``."""
        mask = noise.poisson_mask(len(self._rows), rate).numpy()
        return [self._choose(self._rows[unit], noise) for unit in np.flatnonzero(mask)]

    def _choose(self, rows: np.ndarray, noise: NoiseSource) -> np.ndarray:
        if len(rows) <= self._most:
            return rows
        keys = noise.gaussian((len(rows),), 1.0).numpy()  # ranks of i.i.d. draws: a fair shuffle
        return rows[np.argsort(keys, kind="stable")[: self._most]]


def sum_by_unit(per_record: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Gradients (n, …) of a batch's rows to sums over its units, (n, …) in float64.

    Every row of the result stands for the unit of its number, or for none: it has as many rows as
    the batch, so that what is done with it has a canonical shape, too. In float64 and in the
    unit's own order, so a unit's sum depends on that unit alone.

    Args:
        per_record: gradients of the rows of a :class:`~lorica.common.cache.batching.Batch`.
        owner: its ``owner``, shape (n,); rows of -1 are left out.
    """
    total = torch.zeros(per_record.shape, dtype=torch.float64)
    real = torch.nonzero(owner >= 0).flatten()
    return total.index_add_(0, owner[real], per_record[real].double())


def joined(drawn: Drawn) -> tuple[np.ndarray, torch.Tensor]:
    """Rows of all drawn units, shape (n,), and the number of every row's unit, shape (n,)."""
    owner = np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn])
    rows = np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)
    return rows, torch.from_numpy(owner)
