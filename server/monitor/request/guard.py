"""What holds for every request, whatever page it asks for: its Host, its Origin, the headers."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorica.common.errors import Code
from lorica.server.monitor.access.settings import Settings

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
SAFE_DOCUMENT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "frame-ancestors 'none'"
)
"""For HTML that is not ours to trust: it may look like something and do nothing."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": browsers then send "Origin: null" with forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_READING = ("GET", "HEAD", "OPTIONS")


class Guard:
    """ASGI middleware in front of everything."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """``app`` is what is guarded."""
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse foreign requests, pass on the rest, and put the headers on every answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(MutableHeaders(scope=message))
            await send(message)

        problem = self._problem(Headers(scope=scope), scope["method"])
        if problem:
            text = f"{Code.REQUEST_FOREIGN.value}: {problem} {Code.REQUEST_FOREIGN.entry.mend}\n"
            await PlainTextResponse(text, status_code=403)(scope, receive, sending)
            return
        await self._app(scope, receive, sending)

    def _problem(self, headers: Headers, method: str) -> str:
        host = headers.get("host", "")
        if not self._settings.answers_to(host):
            return "The request is addressed to a name that this monitor does not have."
        if method in _READING:
            return ""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and not self._settings.own_origin(origin, host):
            return "The request comes from another site's page."
        if site not in (None, "same-origin", "none"):
            return "The request comes from another site's page."
        return ""

    def _add_headers(self, headers: MutableHeaders) -> None:
        for name, value in _HEADERS.items():
            headers[name] = value
        headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        headers.setdefault("Cache-Control", "no-store")
        if self._settings.https:
            headers["Strict-Transport-Security"] = "max-age=31536000"
