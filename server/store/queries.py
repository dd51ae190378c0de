"""What pages and commands ask of the store; every question is answered through an index.

Lists are paged by key, not by offset: the next page costs as much as the first, and rows that
come in between shift nothing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import undefer

from lorica.common.errors import Code, LoricaError
from lorica.server.store import artefacts
from lorica.server.store.curves import CURVES, thinned
from lorica.server.store.reader import Cursor, Page
from lorica.server.store.site_queries import Grid, SiteCell, SiteQueries
from lorica.server.store.tables import (
    Artefact,
    Event,
    FlowerRun,
    Round,
    Run,
)

__all__ = ["Cursor", "Difference", "Grid", "Page", "Queries", "SiteCell", "plan_values"]

LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Difference:
    """A plan key that not all compared runs have the same value of."""

    key: str
    values: list[Any]
    """In the order of the runs."""


class Queries(SiteQueries):
    """The reading half of :class:`~lorica.server.store.store.RunStore`."""

    # Runs.

    def run(self, run_id: str) -> Run:
        """A run, with its plan, versions and summary. Raises LOR-740."""
        everything = undefer(Run.plan), undefer(Run.versions), undefer(Run.summary)
        with self.reading() as session:
            return self._run(session, run_id, *everything)

    def find(self, text: str) -> Run:
        """The run of this id, or the only one whose id begins so. Raises LOR-740."""
        with self.reading() as session:
            exact = session.scalar(select(Run.run_id).where(Run.run_id == text))
            if exact is None:
                begins = select(Run.run_id).where(
                    Run.run_id.like(_escaped(text) + "%", escape="\\")
                )
                found = session.scalars(begins.order_by(Run.run_id).limit(4)).all()
                if not text or len(found) != 1:
                    said = f"several begin so: {', '.join(found)}, …" if found else "there is none"
                    raise LoricaError(Code.RUN_UNKNOWN, f"No one run is {text!r}: {said}.")
                exact = found[0]
        return self.run(exact)

    def list_runs(
        self,
        *,
        status: str | Sequence[str] | None = None,
        kind: str | Sequence[str] | None = None,
        method: str | None = None,
        search: str | None = None,
        parent: str | None = None,
        since: float | None = None,
        before: float | None = None,
        after: Cursor | None = None,
        limit: int = 50,
    ) -> Page[Run]:
        """Runs, newest first.

        Args:
            status: one or several.
            kind: one or several; all but baselines and runs of sweeps when neither kind nor
                parent is given.
            method: of aggregation.
            search: text in the id, name, method, task or backbone.
            parent: run id of a sweep or simulation whose runs are wanted.
            since, before: bounds of the time they were created.
            after: the last page's ``next``.
            limit: most rows.
        """
        query = select(Run)
        if status:
            query = query.where(Run.status.in_([status] if isinstance(status, str) else status))
        if kind:
            query = query.where(Run.kind.in_([kind] if isinstance(kind, str) else kind))
        elif parent is None:
            query = query.where(Run.kind.not_in(("baseline", "sweep-run")))
        if method:
            query = query.where(Run.method == method)
        if search:
            query = query.where(_mentions(search))
        if since is not None:
            query = query.where(Run.created >= since)
        if before is not None:
            query = query.where(Run.created < before)
        if after is not None:
            earlier = and_(Run.created == after[0], Run.id < after[1])
            query = query.where(Run.created <= after[0], or_(Run.created < after[0], earlier))
        query = query.order_by(Run.created.desc(), Run.id.desc()).limit(limit + 1)
        with self.reading() as session:
            if parent is not None:
                query = query.where(Run.parent_id == self._key(session, parent))
            found = list(session.scalars(query))
        more = len(found) > limit
        found = found[:limit]
        return Page(found, (found[-1].created, found[-1].id) if more and found else None)

    def count_runs(self) -> dict[str, int]:
        """Status -> number of runs; baselines and runs of sweeps are not counted."""
        shown = Run.kind.not_in(("baseline", "sweep-run"))
        query = select(Run.status, func.count()).where(shown).group_by(Run.status)
        with self.reading() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def methods(self) -> list[str]:
        """Every aggregation method that some run has."""
        with self.reading() as session:
            return sorted(session.scalars(select(Run.method).distinct()))

    def flower_runs(self, run_id: str) -> list[str]:
        """Flower's ids of a run, oldest first."""
        with self.reading() as session:
            key = self._key(session, run_id)
            query = select(FlowerRun.flower_id).where(FlowerRun.run_id == key)
            return list(session.scalars(query.order_by(FlowerRun.created)))

    def run_of_flower(self, flower_id: int | str) -> Run | None:
        """The run that a Flower run works on."""
        query = select(Run).join(FlowerRun).where(FlowerRun.flower_id == str(flower_id))
        with self.reading() as session:
            return session.scalar(query)

    def differences(self, run_ids: Sequence[str]) -> list[Difference]:
        """Plan keys in which runs differ, in the plan's order. Raises LOR-740."""
        plans = [plan_values(self.run(run_id)) for run_id in run_ids]
        keys = list(dict.fromkeys(key for plan in plans for key in plan))
        rows = [Difference(key, [plan.get(key) for plan in plans]) for key in keys]
        return [row for row in rows if any(value != row.values[0] for value in row.values)]

    # Rounds.

    def rounds(self, run_id: str, *, after: int = -1, limit: int | None = None) -> list[Round]:
        """A run's rounds in order, those above ``after``."""
        with self.reading() as session:
            key = self._key(session, run_id)
            query = select(Round).where(Round.run_id == key, Round.round > after)
            return list(session.scalars(query.order_by(Round.round).limit(limit)))

    def curves(
        self, run_id: str, names: Sequence[str] = CURVES, *, most: int = 400
    ) -> dict[str, list[tuple[int, float]]]:
        """Columns of :class:`Round` over the rounds, each thinned to ``most`` points."""
        columns = [getattr(Round, name) for name in names if name in CURVES]
        with self.reading() as session:
            key = self._key(session, run_id)
            query = select(Round.round, *columns).where(Round.run_id == key).order_by(Round.round)
            found = session.execute(query).all()
        shown = [name for name in names if name in CURVES]
        return {
            name: thinned([(r[0], r[i]) for r in found if r[i] is not None], most)
            for i, name in enumerate(shown, 1)
        }

    # Events and artefacts.

    def events(
        self,
        run_id: str | None = None,
        *,
        after: int | None = None,
        before: int | None = None,
        level: str | None = None,
        limit: int = 200,
    ) -> list[Event]:
        """Events of a run, or of all.

        Args:
            run_id: whose.
            after: id above which events are wanted, oldest first (to follow a log).
            before: id below which they are wanted, newest first (to page through one).
            level: the least level.
            limit: most rows.
        """
        query = select(Event)
        if level:
            query = query.where(Event.level.in_(LEVELS[LEVELS.index(level) :]))
        if after is not None:
            query = query.where(Event.id > after).order_by(Event.id)
        else:
            query = query.order_by(Event.id.desc())
            if before is not None:
                query = query.where(Event.id < before)
        with self.reading() as session:
            if run_id is not None:
                query = query.where(Event.run_id == self._key(session, run_id))
            return list(session.scalars(query.limit(limit)))

    def artefacts(self, run_id: str) -> list[Artefact]:
        """Files of a run that can be fetched, by name."""
        with self.reading() as session:
            key = self._key(session, run_id)
            query = select(Artefact).where(Artefact.run_id == key).order_by(Artefact.name)
            return list(session.scalars(query))

    def artefact_path(self, run_id: str, name: str) -> Path:
        """Where an artefact's file lies: within the run's folder, and never outside.

        Raises:
            LoricaError: LOR-740 no such run, LOR-807 no such artefact, or its file is gone.
        """
        with self.reading() as session:
            run = self._run(session, run_id)
            known = session.get(Artefact, (run.id, name))
        return artefacts.file_of(run, known, name)


def _mentions(search: str) -> Any:
    pattern = f"%{_escaped(search)}%"
    columns = (Run.run_id, Run.name, Run.method, Run.task, Run.backbone)
    return or_(*(column.ilike(pattern, escape="\\") for column in columns))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def plan_values(run: Run) -> dict[str, Any]:
    """ "section.key" -> value of a run's plan, as it was written by whatever version."""
    content = tomllib.loads(run.plan)
    return {
        f"{section}.{key}": value
        for section, values in content.items()
        if isinstance(values, dict)
        for key, value in values.items()
    }
