"""For machines: is it well, and what do its figures say."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from lorica.common.errors import LoricaError
from lorica.common.version import __version__
from lorica.server.monitor.request.callers import metrics_reader
from lorica.server.monitor.request.shared import shared_of

router = APIRouter(include_in_schema=False)


@router.get("/health")
def health(request: Request) -> JSONResponse:
    """200 while the store answers, else 503; says nothing else to strangers."""
    try:
        shared_of(request).store.count_runs()
    except LoricaError as error:
        return JSONResponse({"status": "failing", "code": error.code.value}, 503)
    return JSONResponse({"status": "ok", "version": __version__})


@router.get("/metrics", dependencies=[Depends(metrics_reader)])
def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    from lorica.server.reports.metrics import CONTENT_TYPE, prometheus_text

    return Response(prometheus_text(shared_of(request).store), media_type=CONTENT_TYPE)
