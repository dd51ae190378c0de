"""Structured logs: one JSON object a line, with run, round and site where they are known.

``LORICA_LOG=json`` switches them on, for coordinator and site alike; "text" (or nothing) keeps
the plain lines. ``LORICA_LOG_LEVEL`` sets the least level, "info" unless said. Within
:func:`log_context` every line of the package carries the context's ids.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import json
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

from lorica.common.display.text import harmless, printable
from lorica.common.errors import Code, LoricaError

LOG_VARIABLE, LEVEL_VARIABLE = "LORICA_LOG", "LORICA_LOG_LEVEL"
FIELDS = ("run", "round", "site", "flower_run")
"""What a line may carry beside its text; by ``extra=`` or :func:`log_context`."""

_context: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar(
    "log",
    default={},  # noqa: B039 - never changed
)


@contextlib.contextmanager
def log_context(**fields: Any) -> Iterator[dict[str, Any]]:
    """Within, lines carry these of :data:`FIELDS`; contexts add up.

    The dict that it gives may be added to while it lasts.
    """
    own = {**_context.get(), **fields}
    token = _context.set(own)
    try:
        yield own
    finally:
        _context.reset(token)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a line carries of :data:`FIELDS`; to be asked in the thread that logs."""
    around = _context.get()
    found = {name: getattr(record, name, around.get(name)) for name in FIELDS}
    return {name: value for name, value in found.items() if value not in (None, "")}


class JsonFormatter(logging.Formatter):
    """A line as a JSON object: time (UTC), level, logger, text, code, ids, error."""

    def format(self, record: logging.LogRecord) -> str:
        """The record in one line of ASCII-safe JSON, whatever its text holds."""
        text = record.getMessage()
        content: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": text,
        }
        if text.startswith("[LOR-"):
            content["code"] = text[1:8]
        content |= fields_of(record)
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            content["error"] = type(error).__name__
            if isinstance(error, LoricaError):
                content["code"] = error.code.value
        return json.dumps(content, default=str)


class PlainFormatter(logging.Formatter):
    """Lines in which no text from outside steers the terminal or feigns a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's message in one line; a traceback in several."""
        said = copy.copy(record)
        said.msg, said.args = printable(record.getMessage()), None
        return harmless(super().format(said))


def set_up_logging() -> None:
    """Send the package's log to standard error in the form that LORICA_LOG asks for.

    Called once by long-running commands; a second call changes nothing.

    Raises:
        LoricaError: LOR-103 a form or level that there is not.
    """
    form = os.environ.get(LOG_VARIABLE, "text").lower() or "text"
    level = os.environ.get(LEVEL_VARIABLE, "info").upper() or "INFO"
    known = ("DEBUG", "INFO", "WARNING", "ERROR")
    if form not in ("text", "json") or level not in known:
        raise LoricaError(
            Code.PLAN_BAD_VALUE,
            f"{LOG_VARIABLE} is {form!r} and {LEVEL_VARIABLE} {level.lower()!r}; expected text or "
            "json, and debug, info, warning or error.",
            mend=f"Set {LOG_VARIABLE} and {LEVEL_VARIABLE} to one of these, or unset them.",
        )
    log = logging.getLogger("lorica")
    log.setLevel(level)
    if any(getattr(handler, "lorica", False) for handler in log.handlers):
        return
    handler = _handler(form)
    handler.lorica = True  # type: ignore[attr-defined]
    log.addHandler(handler)


def _handler(form: str) -> logging.Handler:
    handler: logging.Handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(JsonFormatter())
        return handler
    from rich.logging import RichHandler

    from lorica.common.display.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        return RichHandler(console=console, show_path=False, markup=False)
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler
