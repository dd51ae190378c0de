"""One run: its page, its files, and the button that stops it."""

from __future__ import annotations

import mimetypes
import tomllib
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from lorica.server.monitor.request.callers import ActingOperator, Person
from lorica.server.monitor.request.guard import SAFE_DOCUMENT_POLICY
from lorica.server.monitor.request.shared import address_of, shared_of
from lorica.server.monitor.request.templating import page
from lorica.server.monitor.shown.shapes import (
    ArtefactShape,
    EventShape,
    RunDetailShape,
    run_shape,
    run_site_shapes,
)
from lorica.server.reports.map import alike_map
from lorica.server.results.alike import likeness
from lorica.server.results.kept_own import kept_own_said

router = APIRouter(include_in_schema=False)
_LINES = 200
_FIRST_ROUNDS = 2  # the start, and the class sums that a run begins with
_SHOWN_IN_PLACE = {".html": "text/html", ".png": "image/png"}


@router.get("/runs/{run_id}")
def run(request: Request, caller: Person, run_id: str) -> HTMLResponse:
    """Everything about a run."""
    store = shared_of(request).store
    found = RunDetailShape.model_validate(store.run(run_id))
    alike = likeness(store.rounds(run_id, limit=_FIRST_ROUNDS))
    last = store.rounds(run_id, after=found.rounds_done - 1)
    return page(
        request,
        "run",
        caller,
        here="runs",
        live=True,
        run=found,
        sites=run_site_shapes(store.run_sites(run_id)),
        lines=[EventShape.model_validate(line) for line in store.events(run_id, limit=_LINES)],
        artefacts=[ArtefactShape.model_validate(item) for item in store.artefacts(run_id)],
        parts_of_run=[run_shape(part) for part in store.list_runs(parent=run_id, limit=100).items],
        plan=_sections(found.plan),
        kept_own=kept_own_said(last),
        alike=alike,
        map=alike_map(alike),
    )


@router.post("/runs/{run_id}/stop")
def stop(request: Request, caller: ActingOperator, run_id: str) -> Response:
    """Ask a run to stop after its last whole round."""
    shared = shared_of(request)
    status = shared.store.request_stop(run_id, by=caller.name)
    shared.audit.add(
        caller.name, "run stopped", run_id, detail=f"now {status}", address=address_of(request)
    )
    return RedirectResponse(f"/runs/{quote(run_id, safe='')}", 303)


@router.get("/runs/{run_id}/files/{name:path}")
def artefact(
    request: Request, caller: Person, run_id: str, name: str, show: bool = False
) -> Response:
    """A file of the run's folder: to keep, or, of a few kinds, to be shown without its scripts."""
    shared = shared_of(request)
    path = shared.store.artefact_path(run_id, name)
    kind = _SHOWN_IN_PLACE.get(path.suffix) if show else None
    shared.audit.add(caller.name, "file fetched", f"{run_id} {name}", address=address_of(request))
    return _file(path, f"{run_id}-{name.replace('/', '-')}", kind)


@router.get("/runs/{run_id}/report")
def report(request: Request, caller: Person, run_id: str) -> HTMLResponse:
    """The report for those who decide, as the store has it now."""
    from lorica.server.reports.report import report_html

    store = shared_of(request).store
    answer = HTMLResponse(report_html(store, store.run(run_id)))
    answer.headers["Content-Security-Policy"] = SAFE_DOCUMENT_POLICY
    return answer


def _file(path: Any, name: str, shown_as: str | None) -> Response:
    kind = shown_as or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    answer = FileResponse(
        path,
        media_type=kind if shown_as else "application/octet-stream",
        filename=name,
        content_disposition_type="inline" if shown_as else "attachment",
    )
    answer.headers["Content-Security-Policy"] = SAFE_DOCUMENT_POLICY
    return answer


def _sections(plan: str) -> dict[str, dict[str, Any]]:
    """The plan's sections; empty for a plan that is not TOML."""
    try:
        found = tomllib.loads(plan)
    except tomllib.TOMLDecodeError:
        return {}
    return {name: keys for name, keys in found.items() if isinstance(keys, dict)}
