"""Pages from templates: everything escaped, nothing inline, addresses of files with their hash."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lorica.common.version import __version__
from lorica.server.monitor.request.callers import Caller
from lorica.server.monitor.request.shared import shared_of
from lorica.server.monitor.shown.formats import FILTERS
from lorica.server.monitor.shown.shapes import RunShape, RunSiteShape

HERE = Path(__file__).resolve().parents[1]  # the monitor
STATIC = HERE / "static"
THEME_COOKIE = "lorica-theme"
THEMES = ("auto", "light", "dark")


@cache
def environment() -> Environment:
    """The templates' environment."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= FILTERS
    made.globals |= {"static": static_url, "version": __version__}
    return made


@cache
def static_url(path: str, bare: bool = False) -> str:
    """Address of a shipped file; it changes with the content, so that browsers may keep it.

    ``bare`` leaves the hash out, for files that style sheets and modules name themselves.
    """
    content = (STATIC / path).read_bytes()
    return f"/static/{path}" + ("" if bare else f"?{hashlib.sha256(content).hexdigest()[:10]}")


def page(
    request: Request,
    template: str,
    caller: Caller | None,
    *,
    http_status: int = 200,
    **content: Any,
) -> HTMLResponse:
    """A page for ``caller``; None: for somebody who is not signed in."""
    theme = request.cookies.get(THEME_COOKIE, "auto")
    shown = {
        "caller": caller,
        "theme": theme if theme in THEMES else "auto",
        "here": "",
        "live": False,
        "open_alerts": len(shared_of(request).watch.alerts()) if caller else 0,
        **content,
    }
    text = environment().get_template(f"{template}.html.j2").render(shown)
    return HTMLResponse(text, status_code=http_status)


def draw_run(run: RunShape, sites: list[RunSiteShape] | None) -> dict[str, str]:
    """The parts of pages that change while a run goes on, by their data-live names."""
    parts: Any = environment().get_template("run_parts.html.j2").module
    drawn = {"row": str(parts.row_cells(run))}
    if sites is not None:
        drawn |= {
            "status": str(parts.status(run)),
            "figures": str(parts.figures(run)),
            "sites": str(parts.site_rows(run, sites)),
        }
    return drawn
