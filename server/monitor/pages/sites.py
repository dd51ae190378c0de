"""Sites: all of them, and one with the runs that it took part in."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse
from sqlalchemy import select
from sqlalchemy.orm import aliased

from lorica.server.monitor.request.callers import Person
from lorica.server.monitor.request.shared import shared_of
from lorica.server.monitor.request.templating import page
from lorica.server.monitor.shown import cursors
from lorica.server.monitor.shown.shapes import RunShape, SiteRunShape, SiteShape, run_shape
from lorica.server.store import RunStore
from lorica.server.store.tables import Run, SiteRun

router = APIRouter(include_in_schema=False)
_PAGE = 100
_RUNS = 50
_Latest = tuple[SiteRunShape, RunShape]


@router.get("/sites")
def sites(
    request: Request, caller: Person, virtual: bool | None = None, after: str = ""
) -> HTMLResponse:
    """Institutions, or the virtual sites of simulations, those seen last first."""
    store = shared_of(request).store
    if virtual is None:  # whichever there are
        virtual = not store.sites(virtual=False, limit=1).items
        virtual = virtual and bool(store.sites(virtual=True, limit=1).items)
    found = store.sites(virtual=virtual, after=cursors.read(after), limit=_PAGE)
    latest = _latest_runs(store, [site.id for site in found.items])
    return page(
        request,
        "sites",
        caller,
        here="sites",
        sites=[
            (SiteShape.model_validate(site), *latest.get(site.id, (None, None)))
            for site in found.items
        ],
        virtual=virtual,
        after=after,
        next=cursors.written(found.next),
    )


@router.get("/site")
def site(request: Request, caller: Person, name: str, virtual: bool = False) -> HTMLResponse:
    """One site."""
    store = shared_of(request).store
    found = store.site(name, virtual=virtual)
    if found is None:
        raise HTTPException(404)
    history = [
        (run_shape(run), SiteRunShape.model_validate(sums))
        for run, sums in store.site_history(found, limit=_RUNS)
    ]
    return page(
        request,
        "site",
        caller,
        here="sites",
        site=SiteShape.model_validate(found),
        history=history,
    )


def _latest_runs(store: RunStore, sites: list[int]) -> dict[int, _Latest]:
    """The run in which each site was seen last, by the site's id."""
    other = aliased(SiteRun)
    latest = (
        select(other.run_id)
        .where(other.site_id == SiteRun.site_id)
        .order_by(other.last_seen.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = select(SiteRun, Run).join(Run, Run.id == SiteRun.run_id)
    query = query.where(SiteRun.site_id.in_(sites), SiteRun.run_id == latest)
    with store.reading() as session:
        return {
            sums.site_id: (SiteRunShape.model_validate(sums), run_shape(run))
            for sums, run in session.execute(query)
        }
