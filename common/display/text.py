"""Text that came from others, made fit to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line, harmless to terminals: no control or direction characters.

    Names of sites, runs and labels come from others; an escape sequence in one could rewrite the
    screen.
    """
    return "".join(c if c.isprintable() else " " if c in "\n\t" else "\ufffd" for c in str(text))
