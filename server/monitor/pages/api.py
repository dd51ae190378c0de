"""The JSON API, version 1: everything that the pages show, for reading."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated, Literal

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from sse_starlette import EventSourceResponse

from lorica.server.monitor.feed.news import ALL
from lorica.server.monitor.pages.runs import MOST_COMPARED
from lorica.server.monitor.request.callers import NotSignedInError, Reader, reader
from lorica.server.monitor.request.shared import shared_of
from lorica.server.monitor.shown import cursors
from lorica.server.monitor.shown.shapes import (
    AlertShape,
    ArtefactShape,
    CellShape,
    ComparisonShape,
    DifferenceShape,
    EventShape,
    GridShape,
    ProblemShape,
    RoundShape,
    RunDetailShape,
    RunSiteShape,
    RunsShape,
    SiteShape,
    round_shape,
    run_shape,
    run_site_shapes,
)

router = APIRouter(
    prefix="/api/v1",
    responses={
        401: {"model": ProblemShape, "description": "no session and no valid token"},
        404: {"model": ProblemShape, "description": "no such run, site or file"},
    },
)

_CHECK_SECONDS = 60.0  # between two looks whether a stream's session still is

Limit = Annotated[int, Query(ge=1, le=500)]


@router.get("/runs", summary="Runs, the newest first")
def list_runs(
    request: Request,
    caller: Reader,
    status: Annotated[list[str] | None, Query(description="one or several")] = None,
    kind: Annotated[list[str] | None, Query(description="all but parts when omitted")] = None,
    search: Annotated[str | None, Query(description="text in id, name, method, task")] = None,
    parent: Annotated[str | None, Query(description="parts of this run")] = None,
    after: Annotated[str | None, Query(description="the last page's `next`")] = None,
    limit: Limit = 50,
) -> RunsShape:
    """Filtered and paged."""
    found = shared_of(request).store.list_runs(
        status=status,
        kind=kind,
        search=search,
        parent=parent,
        after=cursors.read(after),
        limit=limit,
    )
    return RunsShape(runs=[run_shape(run) for run in found.items], next=cursors.written(found.next))


@router.get("/runs/{run_id}", summary="A run with its plan, versions and summary")
def get_run(request: Request, caller: Reader, run_id: str) -> RunDetailShape:
    """Times are seconds since 1970, UTC."""
    return RunDetailShape.model_validate(shared_of(request).store.run(run_id))


@router.get("/runs/{run_id}/rounds", summary="Rounds in order")
def get_rounds(
    request: Request,
    caller: Reader,
    run_id: str,
    after: Annotated[int, Query(description="only rounds above this one")] = -1,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 2_000,
) -> list[RoundShape]:
    """Round 0 is the evaluation of the start."""
    found = shared_of(request).store.rounds(run_id, after=after, limit=limit)
    return [round_shape(row) for row in found]


@router.get("/runs/{run_id}/site-curves", summary="One figure of every site over the rounds")
def get_site_curves(
    request: Request,
    caller: Reader,
    run_id: str,
    name: Literal["epsilon", "update_norm", "agreement"] = "update_norm",
    most: Annotated[int, Query(ge=3, le=2_000, description="points of a curve")] = 200,
) -> dict[str, list[tuple[int, float]]]:
    """Site to its curve, a list of [round, value]; thinned so that peaks stay."""
    return shared_of(request).store.site_curves(run_id, name, most=most)


@router.get("/runs/{run_id}/grid", summary="Sites × rounds: ok, refused, failed or late")
def get_grid(
    request: Request,
    caller: Reader,
    run_id: str,
    first: Annotated[int, Query(ge=1)] = 1,
    last: int | None = None,
) -> GridShape:
    """A letter each."""
    return GridShape.model_validate(shared_of(request).store.grid(run_id, first=first, last=last))


@router.get("/runs/{run_id}/cells", summary="What sites did in rounds, with reasons")
def get_cells(
    request: Request,
    caller: Reader,
    run_id: str,
    round: int | None = None,
    site: str | None = None,
    problems: Annotated[bool, Query(description="only refused, failed and late")] = False,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
) -> list[CellShape]:
    """The newest round first."""
    found = shared_of(request).store.site_cells(
        run_id, round=round, site=site, problems_only=problems, limit=limit
    )
    return [CellShape.model_validate(cell) for cell in found]


@router.get("/runs/{run_id}/sites", summary="Sites of a run and what each did in it")
def get_run_sites(request: Request, caller: Reader, run_id: str) -> list[RunSiteShape]:
    """By name."""
    return run_site_shapes(shared_of(request).store.run_sites(run_id))


@router.get("/runs/{run_id}/events", summary="The log of a run")
def get_events(
    request: Request,
    caller: Reader,
    run_id: str,
    after: Annotated[int | None, Query(description="ids above, oldest first")] = None,
    before: Annotated[int | None, Query(description="ids below, newest first")] = None,
    level: Literal["debug", "info", "warning", "error"] | None = None,
    limit: Limit = 200,
) -> list[EventShape]:
    """The newest first, unless `after` is given."""
    found = shared_of(request).store.events(
        run_id, after=after, before=before, level=level, limit=limit
    )
    return [EventShape.model_validate(event) for event in found]


@router.get("/runs/{run_id}/artefacts", summary="Files that can be fetched")
def get_artefacts(request: Request, caller: Reader, run_id: str) -> list[ArtefactShape]:
    """Fetch one at /runs/RUN/files/NAME, signed in."""
    found = shared_of(request).store.artefacts(run_id)
    return [ArtefactShape.model_validate(item) for item in found]


@router.get("/compare", summary="Several runs: figures and differences of their plans")
def get_comparison(
    request: Request,
    caller: Reader,
    run: Annotated[list[str], Query(min_length=2, max_length=MOST_COMPARED)],
) -> ComparisonShape:
    """Curves are at /runs/RUN/rounds."""
    store = shared_of(request).store
    return ComparisonShape(
        runs=[run_shape(store.run(run_id)) for run_id in run],
        differences=[DifferenceShape.model_validate(row) for row in store.differences(run)],
    )


@router.get("/sites", summary="Institutions, or the virtual sites of simulations")
def get_sites(
    request: Request, caller: Reader, virtual: bool = False, limit: Limit = 100
) -> list[SiteShape]:
    """Those seen last first."""
    found = shared_of(request).store.sites(virtual=virtual, limit=limit)
    return [SiteShape.model_validate(site) for site in found.items]


@router.get("/alerts", summary="Alerts, critical first, then the newest")
def get_alerts(
    request: Request,
    caller: Reader,
) -> list[AlertShape]:
    """What somebody should look at now: of runs that go on, or ended within a day."""
    return [AlertShape.model_validate(alert) for alert in shared_of(request).watch.alerts()]


@router.get("/live", summary="News as server-sent events", response_class=EventSourceResponse)
async def live(
    request: Request,
    caller: Reader,
    run: Annotated[str, Query(description="of this run; else of all runs")] = ALL,
) -> EventSourceResponse:
    """Events `run` (its state), `round` (a whole round), `line` (of the log) and `alerts`."""

    async def news() -> AsyncIterator[bytes]:
        checked = time.monotonic()
        async for item in shared_of(request).live.listen(run):
            if time.monotonic() - checked > _CHECK_SECONDS:
                try:
                    await anyio.to_thread.run_sync(reader, request)
                except NotSignedInError:
                    return  # signed out, removed or revoked since
                checked = time.monotonic()
            yield item

    # The feed keeps pages alive itself; a ping for every stream would cost a timer each.
    return EventSourceResponse(
        news(), ping=3600, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
