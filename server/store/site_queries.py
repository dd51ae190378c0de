"""What is asked of sites: in a run, in a round, over all runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Select, and_, func, or_, select

from lorica.server.store.curves import thinned
from lorica.server.store.reader import Cursor, Page, Reader
from lorica.server.store.tables import Run, Site, SiteRound, SiteRun


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


class SiteQueries(Reader):
    """Questions about sites."""

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
        after: int | None = None,
        site: str | None = None,
        problems_only: bool = False,
        limit: int | None = None,
    ) -> list[SiteCell]:
        """Site rounds of a run with all their figures, newest round first: of one ``round``, of
        those above ``after``, or of all."""
        with self.reading() as session:
            key = self._key(session, run_id)
            query = _cells().where(SiteRound.run_id == key)
            if round is not None:
                query = query.where(SiteRound.round == round)
            if after is not None:
                query = query.where(SiteRound.round > after)
            if site is not None:
                query = query.where(Site.name == site)
            if problems_only:
                query = query.where(SiteRound.status != "ok")
            ordered = query.order_by(SiteRound.round.desc(), Site.name).limit(limit)
            return [SiteCell(*row) for row in session.execute(ordered)]

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
