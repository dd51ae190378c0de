"""Alerts: what somebody should look at."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from lorica.server.monitor.request.callers import Person
from lorica.server.monitor.request.shared import shared_of
from lorica.server.monitor.request.templating import page
from lorica.server.monitor.shown.shapes import AlertShape

router = APIRouter(include_in_schema=False)


@router.get("/alerts")
def alerts(request: Request, caller: Person) -> HTMLResponse:
    """All of them, critical first."""
    shared = shared_of(request)
    found = [AlertShape.model_validate(alert) for alert in shared.watch.alerts()]
    runs = {alert.run_id for alert in found if alert.run_id and alert.site}
    virtual = {run for run in runs if shared.store.run(run).kind != "federation"}
    return page(request, "alerts", caller, here="alerts", live=True, alerts=found, virtual=virtual)
