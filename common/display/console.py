"""The one way to a terminal: what is printed is shown as it is.

rich's own console reads ``[bold]`` in every string as markup and passes escape sequences on: a run
id "[conceal]…" hides what stands behind it, "[/x]" ends the program, and "\\x1b[2J" wipes the
screen. ruff bans rich's console everywhere else (TID251), so that no text of a coordinator, a site
or a file can do so, whoever forgets :func:`lorica.common.display.text.plain`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console as _RichConsole  # noqa: TID251 - the one place
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from lorica.common.display.text import harmless


class Console(_RichConsole):
    """rich's console without markup, emoji codes and guessed colours.

    Formal statement:
        Whatever is rendered, strings and rich's ``Text`` alike, reaches the terminal with no
        control or direction character but line breaks, tabs and rich's own styles and cursor
        moves.
    """

    def __init__(self, **options: Any) -> None:
        """``options``: as of rich; markup is never one."""
        super().__init__(**{"highlight": False} | options | {"markup": False, "emoji": False})

    def print(self, *objects: Any, **options: Any) -> None:
        """As of rich, without ``markup``."""
        super().print(*objects, **options | {"markup": False, "emoji": False})

    def status(self, status: RenderableType, **options: Any) -> Status:
        """As of rich, which reads a string as markup whatever its console says."""
        return super().status(Text(status) if isinstance(status, str) else status, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """rich's segments, every text in them made harmless."""
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text.isprintable():
                yield segment
            else:
                yield Segment(harmless(text), segment.style)
