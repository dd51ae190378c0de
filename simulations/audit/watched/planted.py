"""A real LocalTrainer with canaries among its records, and what the auditor knows of them.

Nothing of the pipeline is rebuilt: canaries are records among the others, and a session's subclass
overwrites what they would give, before anything is clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np

from lorica.client.admission.figures import SiteFigures
from lorica.client.admission.gate import Admission
from lorica.client.ledger import MemoryLedger
from lorica.client.training.sealing import Sealing
from lorica.client.training.session import Session
from lorica.client.training.trainer import LocalTrainer, NoiseFactory
from lorica.common.adapter.state import State, unpack_state
from lorica.common.data.records import Records
from lorica.common.errors import LoricaError
from lorica.common.plan import RunPlan
from lorica.common.wire.messages import Reply, Request

_PLACEHOLDER = "canary"  # text of a canary's record; what it gives is overwritten


class Roster:
    """Whose rows are whose, which were drawn, and what left the site."""

    def __init__(self, included: np.ndarray, units: list[str]) -> None:
        """
        Args:
            included: whether each canary is in the data, bool, shape (m,). Directions beyond m
                are references that belong to nobody.
            units: unit of every one of the site's records, canaries last.
        """
        self.included = included
        self.scores: list[np.ndarray] = []
        """Of every step: the release along all directions, less what real records gave, in
        units of C; shape (number of directions,)."""
        self.draws: list[np.ndarray] = []
        """Of every step: how many rows of each unit were seen, in the site's order of units."""
        self.updates: list[State] = []
        """Of every round: what left the site, unless it left sealed."""
        self._rows_of_canaries = np.flatnonzero(included)
        self._first_canary = len(units) - len(self._rows_of_canaries)
        names, self._unit_of = np.unique(np.array(units, dtype=object), return_inverse=True)
        self._drawn = np.zeros(len(names), dtype=np.int64)

    def note(self, rows: np.ndarray) -> np.ndarray:
        """Count the rows as drawn in this step; returns which are canaries', bool, (n,)."""
        np.add.at(self._drawn, self._unit_of[rows], 1)
        return rows >= self._first_canary

    def canaries_of(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of the canaries whose rows these are."""
        return self._rows_of_canaries[rows - self._first_canary]

    def owners(self, rows: np.ndarray) -> np.ndarray:
        """Number of every row's unit among these rows', from 0 without gaps."""
        return np.unique(self._unit_of[rows], return_inverse=True)[1]

    def end_step(self, scores: np.ndarray) -> None:
        """Keep a step's scores and draws."""
        self.scores.append(scores)
        self.draws.append(self._drawn)
        self._drawn = np.zeros_like(self._drawn)


class WatchedSession(Protocol):
    """A session that tells a roster of its steps."""

    def watch_by(self, watch: Roster) -> None: ...


class PlantedTrainer(LocalTrainer):
    """A site with canaries among its records; everything else is a LocalTrainer's."""

    watched: type[Session]
    """The :class:`WatchedSession` that takes the session's place."""
    roster: Callable[[np.ndarray, list[str], Any], Roster]
    """The class of ``watch``, made from ``included``, the unit of every record, and ``make``."""
    watch: Roster

    def __init__(
        self,
        site: str,
        records: Records,
        plan: RunPlan,
        included: np.ndarray,
        make: Callable[[Any], Any],
        *,
        noise: NoiseFactory,
        sealing: Sealing | None = None,
    ) -> None:
        """
        Args:
            site: name of the site.
            records: its real records.
            plan: with labels.
            included: whether each of the m canaries is in the data, bool, shape (m,). The
                declared number of units is that of the real ones and m / 2, so the coins
                have no part in q and σ.
            make: chooses what the canaries are made of, as the roster's class asks for it.
            noise, sealing: as a LocalTrainer's.
        """
        present = int(included.sum())
        own = plan.privacy.unit == "record"
        units = [str(row) for row in range(len(records))] if own else records.units
        everything = Records(
            [*records.texts, *[_PLACEHOLDER] * present],
            records.labels + [plan.task.labels[0]] * present,
            units + [f"{_PLACEHOLDER} {i}" for i in np.flatnonzero(included)],
            records.groups + [""] * present,
        )
        declared = len(set(units)) + len(included) // 2
        self.ledger = MemoryLedger(plan.privacy.delta, unit=plan.privacy.unit)
        """What was charged."""
        super().__init__(
            site,
            everything,
            noise=noise,
            admission=Admission(figures=SiteFigures(units=declared)),
            ledger=self.ledger,
            sealing=sealing,
        )
        self.watch = type(self).roster(included, everything.units, make)
        self.failure: LoricaError | None = None
        """Why the site refused, in full; the coordinator is told the public reason only."""

    def train(self, request: Request) -> Reply:
        """As :meth:`LocalTrainer.train`; keeps what leaves the site."""
        try:
            reply = super().train(request)
        except LoricaError as error:
            self.failure = error
            raise
        if reply.status == "ok" and reply.blob:
            self.watch.updates.append(unpack_state(reply.blob))
        return reply

    def _refusal(self, request: Request, error: BaseException) -> Reply:
        if isinstance(error, LoricaError):
            self.failure = error
        return super()._refusal(request, error)

    def _open(self, plan: RunPlan) -> Session:
        session = super()._open(plan)
        if not isinstance(session, self.watched):
            session.__class__ = self.watched
            cast(WatchedSession, session).watch_by(self.watch)
        return session
