"""What pages and commands ask of the store; every question is answered through an index.

Lists are paged by key, not by offset: the next page costs as much as the first, and rows that
come in between shift nothing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.orm import Session, undefer

from lorica.common.errors import Code, LoricaError
from lorica.server.runs import artefacts
from lorica.server.runs.curves import CURVES, thinned
from lorica.server.runs.models import (
    Artefact,
    Event,
    FlowerRun,
    Round,
    Run,
    Site,
    SiteRound,
    SiteRun,
)

Item = TypeVar("Item")
Cursor = tuple[float, int]
"""Where a page ended: (time, id) of its last row."""

LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some rows of a list, newest first, and where the next page begins."""

    items: list[Item]
    next: Cursor | None
    """To be given as ``after``; None on the last page."""


@dataclass(frozen=True)
class Grid:
    """Sites × rounds of a run: one letter a cell."""

    sites: list[str]
    rounds: list[int]
    cells: list[str]
    """A row for each site, a letter for each round: "o" ok, "r" refused, "f" failed, "l" late,
    " " not asked."""


@dataclass(frozen=True)
class SiteCell:
    """One site in one round."""

    site: str
    round: int
    status: str
    reason: str
    update_norm: float | None
    agreement: float | None
    epsilon: float | None
    bytes_up: int
    seconds: float


@dataclass(frozen=True)
class Difference:
    """A plan key that not all compared runs have the same value of."""

    key: str
    values: list[Any]
    """In the order of the runs."""


class Queries:
    """The reading half of :class:`~lorica.server.runs.store.RunStore`."""

    def reading(self) -> AbstractContextManager[Session]:
        """A session that reads one consistent state."""
        raise NotImplementedError

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

    def site_curves(
        self, run_id: str, name: Literal["epsilon", "update_norm", "agreement"], *, most: int = 200
    ) -> dict[str, list[tuple[int, float]]]:
        """A column of :class:`SiteRound` for every site over the rounds, thinned."""
        column = getattr(SiteRound, name)
        with self.reading() as session:
            key = self._key(session, run_id)
            query = (
                select(Site.name, SiteRound.round, column)
                .join(Site, Site.id == SiteRound.site_id)
                .where(SiteRound.run_id == key, column.is_not(None))
                .order_by(SiteRound.round)
            )
            found: dict[str, list[tuple[int, float]]] = {}
            for site, round, value in session.execute(query):
                found.setdefault(site, []).append((round, value))
        return {site: thinned(points, most) for site, points in sorted(found.items())}

    def grid(self, run_id: str, *, first: int = 1, last: int | None = None) -> Grid:
        """Sites × rounds; a letter each, 5,000 cells in a few milliseconds."""
        with self.reading() as session:
            key = self._key(session, run_id)
            names = dict(
                session.execute(
                    select(SiteRun.site_id, Site.name)
                    .join(Site, Site.id == SiteRun.site_id)
                    .where(SiteRun.run_id == key)
                    .order_by(Site.name)
                ).all()
            )
            query = select(SiteRound.round, SiteRound.site_id, SiteRound.status).where(
                SiteRound.run_id == key, SiteRound.round >= first
            )
            if last is not None:
                query = query.where(SiteRound.round <= last)
            cells = session.execute(query).all()
        rounds = sorted({cell[0] for cell in cells})
        place = {round: index for index, round in enumerate(rounds)}
        letters = {key: [" "] * len(rounds) for key in names}
        for round, site, status in cells:
            letters[site][place[round]] = status[0]
        return Grid(list(names.values()), rounds, ["".join(row) for row in letters.values()])

    def site_cells(
        self,
        run_id: str,
        *,
        round: int | None = None,
        site: str | None = None,
        problems_only: bool = False,
        limit: int | None = None,
    ) -> list[SiteCell]:
        """Site rounds of a run with all their figures, newest round first."""
        with self.reading() as session:
            key = self._key(session, run_id)
            query = _cells().where(SiteRound.run_id == key)
            if round is not None:
                query = query.where(SiteRound.round == round)
            if site is not None:
                query = query.where(Site.name == site)
            if problems_only:
                query = query.where(SiteRound.status != "ok")
            ordered = query.order_by(SiteRound.round.desc(), Site.name).limit(limit)
            return [SiteCell(*row) for row in session.execute(ordered)]

    # Sites.

    def run_sites(self, run_id: str) -> list[tuple[Site, SiteRun]]:
        """The sites of a run with their sums, by name."""
        with self.reading() as session:
            key = self._key(session, run_id)
            query = select(Site, SiteRun).join(SiteRun, SiteRun.site_id == Site.id)
            return [
                (site, sums)
                for site, sums in session.execute(
                    query.where(SiteRun.run_id == key).order_by(Site.name)
                )
            ]

    def sites(
        self, *, virtual: bool = False, after: Cursor | None = None, limit: int = 100
    ) -> Page[Site]:
        """Institutions (or, ``virtual``, sites of simulations), those seen last first."""
        query = select(Site).where(Site.virtual.is_(virtual))
        if after is not None:
            earlier = and_(Site.last_seen == after[0], Site.id < after[1])
            query = query.where(or_(Site.last_seen < after[0], earlier))
        query = query.order_by(Site.last_seen.desc(), Site.id.desc()).limit(limit + 1)
        with self.reading() as session:
            found = list(session.scalars(query))
        more = len(found) > limit
        found = found[:limit]
        return Page(found, (found[-1].last_seen, found[-1].id) if more and found else None)

    def site(self, name: str, *, virtual: bool = False) -> Site | None:
        """A site by name."""
        with self.reading() as session:
            return session.scalar(select(Site).where(Site.virtual.is_(virtual), Site.name == name))

    def site_history(self, site: Site, *, limit: int = 50) -> list[tuple[Run, SiteRun]]:
        """The runs that a site took part in, newest first, with its sums in each."""
        query = (
            select(Run, SiteRun)
            .join(SiteRun, SiteRun.run_id == Run.id)
            .where(SiteRun.site_id == site.id)
            .order_by(SiteRun.last_seen.desc(), SiteRun.run_id.desc())
            .limit(limit)
        )
        with self.reading() as session:
            return [(run, sums) for run, sums in session.execute(query)]

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

    # Within a session.

    @staticmethod
    def _run(session: Session, run_id: str, *options: Any) -> Run:
        found = session.scalar(select(Run).where(Run.run_id == run_id).options(*options))
        if found is None:
            raise LoricaError(Code.RUN_UNKNOWN, f"The store has no run {run_id!r}.")
        return found

    @staticmethod
    def _key(session: Session, run_id: str) -> int:
        found = session.scalar(select(Run.id).where(Run.run_id == run_id))
        if found is None:
            raise LoricaError(Code.RUN_UNKNOWN, f"The store has no run {run_id!r}.")
        return found


def _cells() -> Select[*tuple[Any, ...]]:
    return select(
        Site.name,
        SiteRound.round,
        SiteRound.status,
        func.coalesce(SiteRound.reason, ""),
        SiteRound.update_norm,
        SiteRound.agreement,
        SiteRound.epsilon,
        SiteRound.bytes_up,
        SiteRound.seconds,
    ).join(Site, Site.id == SiteRound.site_id)


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
