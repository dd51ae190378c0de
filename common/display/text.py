"""Text that came from others, made fit to be shown.

A coordinator's run ids and labels end on a site's screen, where somebody decides by them; a site's
name ends on the coordinator's. So every terminal is the one of
:mod:`lorica.common.display.console`, which knows no markup and lets no control character through,
and every text from outside goes through :func:`plain` on its way to one.
"""

from __future__ import annotations

MOST_SHOWN = 200
"""Characters of a text from outside that are shown."""


def plain(text: object, most: int = MOST_SHOWN) -> str:
    """A text from outside as it is shown: one line of at most ``most`` characters, none of which
    steers a terminal or turns the direction of writing; "…" stands for what was cut."""
    shown = printable(str(text)[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def printable(text: str) -> str:
    """The text on one line, harmless to terminals: no control or direction characters.

    Names of sites, runs and labels come from others; an escape sequence in one could rewrite the
    screen.
    """
    return "".join(c if c.isprintable() else " " if c in "\n\t" else "\ufffd" for c in str(text))


def harmless(text: str) -> str:
    """As :func:`printable`, with line breaks and tabs as they are."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
