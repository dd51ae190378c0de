"""The audited site in sealed sums: its federation, and a coordinator that keeps every sum it opens.

The sites are real: each masks its vector and opens sums by the real protocol, and the coordinator
is the real round loop. The auditor is that coordinator together with all colluding sites, which
give no noise and tell it their vectors; and, as the strongest adversary, it knows all real records
of the honest sites, too, and which of them were drawn. From an opened sum it subtracts what all
these should have added by the guarantee; what is left is the canaries' part and the noise of the
honest sites.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lorica.client.mechanism.noise import NoiseSource
from lorica.client.training.sealing import Sealing
from lorica.client.training.trainer import NoiseFactory
from lorica.common.adapter.state import State
from lorica.common.data.records import Records
from lorica.common.errors import LoricaError
from lorica.common.plan.stages import Stage
from lorica.common.secure_sum.grid import Grid
from lorica.common.secure_sum.identity import Identity
from lorica.common.wire.messages import Kind
from lorica.server.aggregation import Aggregator
from lorica.server.results.folder import RunFolder
from lorica.server.results.observers import Silent
from lorica.server.rounds.loop import RoundLoop
from lorica.server.rounds.sealed import SealedSum, SealedSums
from lorica.simulations.audit.watched.canaries import Entries
from lorica.simulations.audit.watched.releases import MakeEntries, ReleaseWatch, ReleasingTrainer
from lorica.simulations.audit.watched.subject import Subject
from lorica.simulations.run.engines import run_in_process
from lorica.simulations.run.sites import stands_in

_OTHERS = 100  # records of each other site, at most: they are known, and subtracted

SumHeard = Callable[[npt.NDArray[np.float64]], None]


class SumWatch(ReleaseWatch):
    """What one site gives to the sums of a run, by the guarantee."""

    def __init__(self, included: np.ndarray, units: list[str], make: MakeEntries) -> None:
        super().__init__(included, units, make)
        self.reals: list[torch.Tensor] = []
        """Of every round: what its real records add to the head's weight, float64 (C, H)."""
        self.bounds: list[float] = []
        """Of every round: the bound on what one unit adds."""

    @property
    def entries(self) -> Entries:
        """The canaries' and references' entries."""
        assert self._entries is not None
        return self._entries

    def released(self, stage: Stage, weight: torch.Tensor) -> None:
        """A site's vector goes into a sum; the auditor sees the sum alone."""
        self.stages.append(stage)
        self.reals.append(self._real[:, : weight.shape[1]])
        self.bounds.append(self._bound)
        self.end_step(np.empty(0))


class SummingTrainer(ReleasingTrainer):
    """A site whose part in sealed sums is watched."""

    roster = SumWatch
    watch: SumWatch


class NoNoise:
    """A colluding site's source of noise: it draws its units as all do, and adds none."""

    def __init__(self, inner: NoiseSource) -> None:
        self._inner, self.kind = inner, inner.kind
        self.add_noise, self.gaussian = inner.add_noise, inner.gaussian
        self.poisson_mask = inner.poisson_mask

    def discrete(self, count: int, variance: int) -> npt.NDArray[np.int64]:
        """Zeros."""
        return np.zeros(count, dtype=np.int64)


class SummedFederation:
    """The audited site, the other honest ones and the colluding ones."""

    def __init__(self, subject: Subject, included: np.ndarray, make: MakeEntries) -> None:
        """
        Args:
            subject: in sealed sums (:attr:`Subject.in_sums`).
            included: whether each canary is in the audited site's data, bool, shape (m,).
            make: chooses the entries.
        """
        self._subject, seats = subject, subject.seats
        self.audited = self._site(subject.site, subject.records, included, make)
        """The site with the canaries."""
        rows = np.arange(min(len(subject.others), _OTHERS * (seats.sites - 1)))
        others = np.array_split(rows, seats.sites - 1)
        self._sites = {subject.site: self.audited}
        for number, rows in enumerate(others, start=1):
            honest = number < seats.honest
            name = f"{'honest' if honest else 'colluding'} site {number}"
            none = np.zeros(0, dtype=bool)
            self._sites[name] = self._site(
                name,
                subject.others.take(rows.tolist()),
                none,
                lambda shape: Entries(0, shape, np.random.default_rng(0)),
                colludes=not honest,
            )
        self._sums: list[npt.NDArray[np.float64]] = []

    def _site(
        self,
        name: str,
        records: Records,
        included: np.ndarray,
        make: MakeEntries,
        *,
        colludes: bool = False,
    ) -> SummingTrainer:
        noise = self._subject.noise_of(name)
        return SummingTrainer(
            name,
            records,
            self._subject.plan,
            included,
            make,
            noise=_without_noise(noise) if colludes else noise,
            sealing=sealing_of(self._subject, name),
        )

    def train(self, run: str) -> None:
        """All rounds of the plan.

        Raises:
            LoricaError: what a site refused with, in full.
        """
        subject = self._subject
        with tempfile.TemporaryDirectory() as path:
            folder = RunFolder(Path(path))
            folder.create(subject.plan)
            try:
                run_in_process(
                    lambda grid: (
                        CuriousLoop(
                            grid,
                            subject.plan,
                            folder,
                            run=run,
                            start=lambda: subject.start,
                            evaluate=None,
                            observer=Silent(),
                            nodes=len(self._sites),
                            stand_in=stands_in(subject.plan),
                        )
                        .telling(self._sums.append)
                        .run()
                    ),
                    self._sites,
                )
            except LoricaError as error:
                failures = [site.failure for site in self._sites.values() if site.failure]
                raise (failures[0] if failures else error) from error

    @property
    def seen(self) -> np.ndarray:
        """Of every round: the opened sum along all entries, less what real records gave, in units
        of the bound; shape (rounds, entries)."""
        watch = self.audited.watch
        found = []
        for number, (total, bound) in enumerate(zip(self._sums, watch.bounds, strict=True)):
            real = sum(site.watch.reals[number] for site in self._sites.values())
            assert isinstance(real, torch.Tensor)
            weight = torch.from_numpy(total[-real.numel() :]).reshape(real.shape)
            found.append(watch.entries.project(weight - real) / bound)
        return np.array(found)


class CuriousLoop(RoundLoop):
    """The round loop of a coordinator that keeps what it sees: every opened sum of a training
    round. The head's weight comes last in it, in the order of tensors' names."""

    def telling(self, heard: SumHeard) -> CuriousLoop:
        """The same loop, which tells ``heard`` of every sum: float64, shape (values,)."""
        self._tell = heard
        return self

    def _sealed_round(self, round: int, state: State, rule: Aggregator, begun: float) -> State:
        if not isinstance(self._sums, _HeardSums):
            self._sums = _HeardSums(self._sums, self._tell)
        return super()._sealed_round(round, state, rule, begun)


class _HeardSums(SealedSums):
    def __init__(self, inner: SealedSums, heard: SumHeard) -> None:
        self._inner, self._tell = inner, heard

    def make(
        self, kind: Kind, round: int, blob: bytes, grid_of: Callable[[int], Grid]
    ) -> SealedSum:
        found = self._inner.make(kind, round, blob, grid_of)
        self._tell(found.values)
        return found


def sealing_of(subject: Subject, site: str) -> Sealing:
    """A virtual site's signing key, the same for the same seed."""
    seed = f"audited site/{subject.plan.simulation.seed}/{site}".encode()
    identity = Identity.from_seed(hashlib.sha256(seed).digest())
    return Sealing(site, identity, stand_in=stands_in(subject.plan))


def _without_noise(noise: NoiseFactory) -> NoiseFactory:
    return lambda run, round: NoNoise(noise(run, round))
