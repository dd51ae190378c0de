"""The list of runs, and several runs compared."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from lorica.server.monitor.request.callers import Person
from lorica.server.monitor.request.shared import shared_of
from lorica.server.monitor.request.templating import page
from lorica.server.monitor.shown import cursors
from lorica.server.monitor.shown.shapes import DifferenceShape, run_shape

router = APIRouter(include_in_schema=False)

GROUPS = {
    "": None,
    "active": ("queued", "running", "stopping"),
    "finished": ("finished",),
    "ended early": ("stopped", "interrupted"),
    "failed": ("failed",),
}
"""The filters of the list: a word, and the statuses that it means."""

KINDS = {
    "": None,
    "federation": ("federation",),
    "simulation": ("simulation", "sweep"),
    "parts": ("baseline", "sweep-run"),
}
MOST_COMPARED = 6
_PAGE = 50


@router.get("/runs")
def runs(
    request: Request,
    caller: Person,
    status: str = "",
    kind: str = "",
    q: Annotated[str, Query(max_length=200)] = "",
    after: str = "",
) -> HTMLResponse:
    """Runs, the newest first."""
    store = shared_of(request).store
    counts = store.count_runs()
    found = store.list_runs(
        status=GROUPS.get(status),
        kind=KINDS.get(kind),
        search=q.strip() or None,
        after=cursors.read(after),
        limit=_PAGE,
    )
    groups = {
        word: sum(counts.get(name, 0) for name in names) if names else sum(counts.values())
        for word, names in GROUPS.items()
    }
    return page(
        request,
        "runs",
        caller,
        here="runs",
        live=True,
        runs=[run_shape(run) for run in found.items],
        next=cursors.written(found.next),
        groups=groups,
        status=status if status in GROUPS else "",
        kind=kind if kind in KINDS else "",
        q=q,
        after=after,
        most_compared=MOST_COMPARED,
    )


@router.get("/compare")
def compare(
    request: Request, caller: Person, run: Annotated[list[str] | None, Query()] = None
) -> Response:
    """Runs beside each other: curves over one another, figures, and how their plans differ."""
    store = shared_of(request).store
    chosen = list(dict.fromkeys(run or []))[:MOST_COMPARED]
    found = [run_shape(store.run(run_id)) for run_id in chosen]
    differences = store.differences(chosen) if len(chosen) > 1 else []
    return page(
        request,
        "compare",
        caller,
        here="runs",
        runs=found,
        differences=[DifferenceShape.model_validate(row) for row in differences],
    )
