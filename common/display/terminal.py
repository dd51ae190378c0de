"""Output that any terminal takes: what it cannot show is written in ASCII, and nothing fails."""

from __future__ import annotations

import codecs
import sys
import unicodedata
from typing import TextIO

PLAIN = {
    "ε": "epsilon",
    "δ": "delta",
    "σ": "sigma",
    "α": "alpha",
    "μ": "u",
    "µ": "u",
    "∞": "inf",
    "±": "+-",
    "×": "x",
    "·": "*",
    "−": "-",
    "–": "-",
    "—": "-",
    "…": "...",
    "→": "->",
    "←": "<-",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "√": "sqrt",
    "∑": "sum",
    "✓": "ok",
    "✔": "ok",
    "✗": "x",
    "✘": "x",
    "•": "*",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "\u00a0": " ",
}
"""What stands for characters that a terminal cannot show."""

HANDLER = "lorica-plain"


def in_ascii(text: str) -> str:
    """The text in ASCII: as :data:`PLAIN` says, letters without their marks, lines and blocks as
    "-", "|", "+" and "#"; whatever else there is as "?"."""
    return "".join(c if c.isascii() else PLAIN.get(c) or _plain(c) for c in text)


def _plain(character: str) -> str:
    name = unicodedata.name(character, "")
    if name.startswith("BOX DRAWINGS"):
        lines = {"HORIZONTAL": "-", "VERTICAL": "|"}
        return lines.get(name.rpartition(" ")[2], "+")
    if name.startswith("BRAILLE") or "BLOCK" in name or "SHADE" in name:
        return "#"
    bare = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return bare or "?"


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_ascii(error.object[error.start : error.end]), error.end


def prepare(*streams: TextIO) -> None:
    """Have standard output and standard error, or these streams, take every text.

    Streams in UTF-8 stay as they are, but for halves of surrogate pairs, as undecodable file
    names have them, which are escaped.
    """
    codecs.register_error(HANDLER, _replace)
    for stream in streams or (sys.stdout, sys.stderr):
        change = getattr(stream, "reconfigure", None)
        if change is not None:
            unicode = (stream.encoding or "").lower().replace("-", "").startswith("utf")
            change(errors="backslashreplace" if unicode else HANDLER)
