"""The audited site in releases on frozen features, and who watches it.

A record's contribution there is a matrix left (x) right, so a canary along one entry (c, h) of the
head is a record with left = e_c and right = e_h times an oversize norm: the auditor writes these
two rows and nothing else. Drawing units, norms, clipping, the sum, the noise, the charge and the
message are the site's own. The auditor sees what leaves the site, and, as the strongest adversary,
knows all real records, which of them were drawn, and so what they should have added by the
guarantee, which it works out by itself and subtracts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from lorica.client.mechanism.frozen_features import Contributions
from lorica.client.mechanism.noise import NoiseSource
from lorica.client.training.session import Session
from lorica.common.adapter.state import State
from lorica.common.plan.stages import Stage
from lorica.common.privacy.event import PrivacyEvent
from lorica.simulations.audit.watched.canaries import OVERSIZE, Entries
from lorica.simulations.audit.watched.planted import PlantedTrainer, Roster

MakeEntries = Callable[[tuple[int, int]], Entries]
"""Chooses the entries once the shape of the head's weight is known."""

_TINY = 1e-12


class ReleaseWatch(Roster):
    """What the auditor gathers over the releases of a run."""

    def __init__(self, included: np.ndarray, units: list[str], make: MakeEntries) -> None:
        """
        Args:
            included, units: as a roster's.
            make: chooses the entries.
        """
        super().__init__(included, units)
        self.stages: list[Stage] = []
        """Of every release: its stage."""
        self._make = make
        self._entries: Entries | None = None

    def contributed(
        self, given: Contributions, rows: np.ndarray, shape: tuple[int, int]
    ) -> Contributions:
        """Note the rows and what real ones add; the same with canaries' rows overwritten.

        Args:
            given: what the drawn rows give; n rows.
            rows: the site's numbers of the rows, shape (n,).
            shape: (C, H) of the head's weight.
        """
        if self._entries is None:
            self._entries = self._make(shape)
        canary = self.note(rows)
        real, planted = torch.from_numpy(~canary), torch.from_numpy(canary)
        self._bound = given.bound
        self._real = claimed_sum(
            Contributions(given.left[real], given.right[real], given.bound),
            self.owners(rows[~canary]),
        )
        at, along = self._entries.of(self.canaries_of(rows[canary]))
        left, right = given.left.clone(), given.right.clone()
        left[planted] = torch.nn.functional.one_hot(at, left.shape[1]).double()
        unit = torch.nn.functional.one_hot(along, right.shape[1]).double()
        right[planted] = OVERSIZE * given.bound * unit
        return Contributions(left, right, given.bound)

    def released(self, stage: Stage, weight: torch.Tensor) -> None:
        """A release's noised sum of the head's weight (C, H) leaves the site."""
        assert self._entries is not None
        seen = weight.double() - self._real[:, : weight.shape[1]]
        self.stages.append(stage)
        self.end_step(self._entries.project(seen) / self._bound)


def claimed_sum(given: Contributions, owner: np.ndarray) -> torch.Tensor:
    """What the guarantee says that units add: Σ_u of u's mean matrix, cut to norm ``bound``.

    Written out unit by unit, but where every unit has one record: its norm is ‖left‖·‖right‖.
    """
    left, right = given.left, given.right
    units = int(owner.max(initial=-1)) + 1
    if units == len(owner):
        norms = left.norm(dim=1) * right.norm(dim=1)
        return ((given.bound / (norms + _TINY)).clamp(max=1.0)[:, None] * left).T @ right
    total = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64)
    order = np.argsort(owner, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
        mean = left[rows].T @ right[rows] / len(rows)
        total += mean * min(1.0, given.bound / (float(mean.norm()) + _TINY))
    return total


class _WatchedReleases(Session):
    """A session whose contributions and releases a :class:`ReleaseWatch` hears of."""

    def watch_by(self, watch: Roster) -> None:
        assert isinstance(watch, ReleaseWatch)
        self._watch = watch

    def _contributions(self, stage: Stage, rows: np.ndarray) -> Contributions:
        given = super()._contributions(stage, rows)
        head = self._classifier.head
        self._stage = stage
        assert isinstance(head, torch.nn.Linear)
        shape = head.out_features, head.in_features
        return self._watch.contributed(given, self._train_rows[rows], shape)

    def train(self, round: int, event: PrivacyEvent, noise: NoiseSource) -> State:
        released = super().train(round, event, noise)
        self._watch.released(self._stage, released["head.weight"])
        return released


class ReleasingTrainer(PlantedTrainer):
    """A site whose releases on frozen features are watched."""

    watched = _WatchedReleases
    roster = ReleaseWatch
    watch: ReleaseWatch
