"""What a request may be: how large, and whose."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorica.common.errors import Code, LoricaError


@dataclass(frozen=True)
class Limits:
    """Bounds of the server."""

    body_bytes: int = 1 << 20
    """Largest body of a request."""
    texts: int = 256
    """Most texts in one request."""
    waiting: int = 4096
    """Most texts that wait."""
    batch: int = 32
    """Most texts in one batch of the model."""
    gather_seconds: float = 0.02
    """How long a text waits for others to share its batch."""
    hands: int = 1
    """Batches that are answered at a time, each by its share of the cores."""


class Measured:
    """Tells status and seconds of every request of one path."""

    def __init__(self, app: ASGIApp, path: str, note: Callable[[int, float], None]) -> None:
        """
        Args:
            app: what is measured.
            path: of the requests.
            note: called with status and seconds when an answer is sent.
        """
        self._app, self._path, self._note = app, path, note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Without a task or a stream of its own, as starlette's middleware by functions has."""
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._note(status, time.perf_counter() - begun)


class Bounded:
    """Refuses bodies above a size, whatever their header says, before anything parses them."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        """
        Args:
            app: what is guarded.
            most: bytes.
        """
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body up to the bound, and hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            size += len(message.get("body", b""))
            if size > self._most:
                await answer_error(send, too_large(self._most), 413)
                return
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        body: Message | None = {"type": "http.request", "body": b"".join(parts)}

        async def whole() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            given, body = body, None
            return given

        await self._app(scope, whole, send)


class Guarded:
    """Lets in who has the token; /health is open, for whoever watches the service."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        """
        Args:
            app: what is guarded.
            token: the secret; empty: nobody is asked for one.
        """
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Compare in constant time."""
        if scope["type"] == "http" and self._token and scope["path"] != "/health":
            headers = dict(scope["headers"])
            given = bytes(headers.get(b"authorization", b""))
            if not hmac.compare_digest(given, b"Bearer " + self._token):
                error = LoricaError(
                    Code.SERVER_TOKEN, "The request has no token, or another than the server's."
                )
                await answer_error(send, error, 401, (b"www-authenticate", b"Bearer"))
                return
        await self._app(scope, receive, send)


def too_large(most: int) -> LoricaError:
    """The error of a body above the bound."""
    return LoricaError(Code.SERVER_REQUEST, f"The body has more than {most:,} bytes.")


def error_content(error: LoricaError) -> dict[str, dict[str, str]]:
    """An error as JSON: code, sentence, mend."""
    return {
        "error": {"code": error.code.value, "message": error.detail, "how_to_mend_it": error.mend}
    }


async def answer_error(
    send: Send, error: LoricaError, status: int, *headers: tuple[bytes, bytes]
) -> None:
    """Answer with an error before the application is asked."""
    body = json.dumps(error_content(error)).encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
