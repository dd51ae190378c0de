"""The web application: its parts put together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from lorica.common.errors import Code, LoricaError
from lorica.common.version import __version__
from lorica.server.monitor.access.settings import Settings
from lorica.server.monitor.pages import (
    access,
    alerts,
    api,
    api_guide,
    machines,
    run,
    runs,
    sites,
)
from lorica.server.monitor.request.callers import Caller, NotSignedInError, person
from lorica.server.monitor.request.guard import Guard
from lorica.server.monitor.request.shared import Shared
from lorica.server.monitor.request.templating import STATIC, draw_run, page
from lorica.server.store import RunStore

_STATUS = {
    Code.ACCESS_DENIED: 403,
    Code.FORM_FORGED: 403,
    Code.RUN_UNKNOWN: 404,
    Code.ARTEFACT_UNKNOWN: 404,
    Code.STORE_UNREACHABLE: 503,
}


class _Files(StaticFiles):
    """Shipped files; whoever has one may keep it for a day, and asks again by its hash."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["Cache-Control"] = "public, max-age=86400"
        return answer


def create_app(store: RunStore, settings: Settings | None = None) -> FastAPI:
    """The monitor of a store, as an ASGI application.

    Args:
        store: the run store; closed by whoever opened it.
        settings: how it is served; the defaults when omitted.
    """
    settings = settings or Settings()
    shared = Shared.of(store, settings, draw_run)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await shared.live.close()

    app = FastAPI(
        title="Lorica monitor",
        version=__version__,
        description="Runs, rounds, sites and alerts of a federation, as the run store has them.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
    )
    app.state.shared = shared
    app.add_middleware(Guard, settings=settings)
    for part in (
        *(machines, access, runs, run, sites),
        *(alerts, api_guide, api),
    ):
        app.include_router(part.router)
    app.mount("/static", _Files(directory=STATIC), name="static")
    app.add_exception_handler(NotSignedInError, _not_signed_in)
    app.add_exception_handler(LoricaError, _coded)
    app.add_exception_handler(HTTPException, _plain)
    app.add_exception_handler(RequestValidationError, _malformed)
    return app


def _not_signed_in(request: Request, error: Exception) -> Response:
    if _for_programs(request):
        message = "Sign in, or send an API token: Authorization: Bearer lorica_…"
        answer = _json(401, "", message, "`lorica monitor token add NAME` makes a token.")
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer
    wanted = request.url.path if request.method == "GET" else ""
    if request.url.query and wanted:
        wanted += f"?{request.url.query}"
    return RedirectResponse(f"/login?next={quote(wanted)}" if wanted else "/login", 303)


def _coded(request: Request, error: Exception) -> Response:
    assert isinstance(error, LoricaError)
    status = _STATUS.get(error.code, 409)
    return _problem(request, status, error.code.value, error.detail, error.mend)


def _plain(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == 404:
        detail = "There is nothing at this address."
    return _problem(request, error.status_code, "", detail, "")


def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'][1:])}: {problem['msg']}"
        for problem in error.errors()
    )
    return _problem(request, 422, "", f"The request cannot be understood: {found}", "")


def _problem(request: Request, status: int, code: str, detail: str, mend: str) -> Response:
    if _for_programs(request):
        return _json(status, code, detail, mend)
    try:
        caller: Caller | None = person(request)
    except (NotSignedInError, LoricaError):
        caller = None
    title = Code(code).entry.title if code else HTTPStatus(status).phrase
    try:
        return page(
            request,
            "problem",
            caller,
            http_status=status,
            title=title,
            detail=detail,
            mend=mend,
            code=code,
        )
    except LoricaError:  # the store is gone: a page without the frame
        return page(
            request,
            "problem",
            None,
            http_status=status,
            title=title,
            detail=detail,
            mend=mend,
            code=code,
        )


def _json(status: int, code: str, message: str, mend: str) -> JSONResponse:
    return JSONResponse({"code": code, "message": message, "mend": mend}, status)


def _for_programs(request: Request) -> bool:
    path = request.url.path
    return path.startswith("/api/v1/") or path in ("/metrics", "/health")
