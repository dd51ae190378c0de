"""The virtual sites of a simulation, made when they are asked for.

A hundred thousand sites of which a round asks a tenth need not all be there at once: what is kept
of a site that has spent nothing is its name and which records are its own. A trainer that has begun
a ledger stays for as long as these sites do, so nothing that it charged, answered or keeps for
itself is ever made anew. One that has not holds nothing that a new one would not.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from lorica.client.answering.protocol import Trainer
from lorica.client.training.trainer import LocalTrainer

_NEWEST = 256
"""Trainers that were made last are kept, though they have spent nothing: they are asked again."""

Kind = TypeVar("Kind", bound=Trainer)

Make = Callable[[int, str, list[int]], LocalTrainer]
"""(number, name, rows) -> the trainer of a site, whose ledgers keep it
(:class:`~lorica.client.training.models.Models`); the same for the same arguments."""


class VirtualSites(Mapping[str, LocalTrainer]):
    """Trainers by name, in the order of their partition ids."""

    def __init__(self, parts: Mapping[str, Sequence[int]], make: Make, *, keep: bool) -> None:
        """
        Args:
            parts: rows of every site.
            make: makes a site's trainer.
            keep: whether a trainer holds something from the first question on (identities of sealed
                sums); each is then kept once it is made.
        """
        self._make = make
        self._numbers = {name: number for number, name in enumerate(parts)}
        counts = np.array([0, *(len(rows) for rows in parts.values())], dtype=np.int64)
        self._starts = np.cumsum(counts)
        self._rows = np.empty(int(self._starts[-1]), dtype=np.int64)
        for number, rows in enumerate(parts.values()):
            self._rows[self._starts[number] : self._starts[number + 1]] = rows
        self._made: weakref.WeakValueDictionary[int, LocalTrainer] = weakref.WeakValueDictionary()
        self._kept: deque[LocalTrainer] = deque(maxlen=None if keep else _NEWEST)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __getitem__(self, site: str) -> LocalTrainer:
        number = self._numbers[site]
        found = self._made.get(number)
        if found is None:
            rows = self._rows[self._starts[number] : self._starts[number + 1]].tolist()
            found = self._made[number] = self._make(number, site, rows)
            self._kept.append(found)
        return found

    def __contains__(self, site: object) -> bool:
        return site in self._numbers


class InOrder(Generic[Kind]):
    """The sites of a mapping by their number, each taken when it is asked for."""

    def __init__(self, sites: Mapping[str, Kind]) -> None:
        """``sites``: in the order of their partition ids."""
        self._sites, self._names = sites, list(sites)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> Kind:
        return self._sites[self._names[number]]
