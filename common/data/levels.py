"""Grey levels: values of more than 8 bits, and fractions, to 0 … 255 by a rule that is said.

The rule, unless a window is given: a file's own word of its bits (PNG's sBIT, TIFF's
BitsPerSample below 16); else whole numbers up to 4095 are 12 bits, as X-rays are kept in files of
16, and others 16 bits; fractions are in [0, 1]. Whatever else there is, is refused: what is cut
to white or black cannot be told apart. The rule asks one image alone, so a neighbour changes no
pixel; a source in which it finds 12 bits here and 16 there is refused, too, for then one of the
two is guessed wrongly.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from lorica.common.errors import Code, LoricaError

_PNG = b"\x89PNG\r\n\x1a\n"
_BITS_PER_SAMPLE = 258  # tag of TIFF
_LEAST, _MOST = 12, 16
MEND = (
    "Say with data.window = [centre, width] which values become black to white, such as "
    "[2048, 4096] for 12 bits, [32768, 65536] for 16, [0.5, 1] for fractions."
)


class Levels:
    """The way from an image's values to grey levels, the same for all images of a source."""

    def __init__(self, window: Sequence[float] = ()) -> None:
        """``window``: centre and width of the values that become black to white; empty: the rule
        of this module."""
        self._window = tuple(window)
        self._seen: dict[int, str] = {}

    def grey(self, values: np.ndarray, bits: int, name: str) -> np.ndarray:
        """Values (H, W) as uint8 (H, W).

        Args:
            values: whole numbers or fractions.
            bits: what the file says of them; 0: nothing.
            name: the image's, for messages.

        Raises:
            LoricaError: LOR-327 values that no rule covers, or another rule than for the images
                before.
        """
        whole = np.issubdtype(values.dtype, np.integer)
        if not whole and not np.isfinite(values).all():
            raise LoricaError(Code.DATA_IMAGE, f"{name} holds values that are no numbers.")
        if self._window:
            centre, width = self._window
            least = centre - width / 2
        elif whole:
            least, width = 0.0, float((1 << self.depth(values, bits, name)) - 1)
        else:
            least, width = 0.0, 1.0
            if values.min(initial=0) < 0 or values.max(initial=0) > 1:
                raise LoricaError(
                    Code.DATA_IMAGE,
                    f"{name} holds fractions from {values.min():g} to {values.max():g}; without a "
                    "window, 0 is black and 1 is white.",
                    mend=MEND,
                )
        share = np.clip((values.astype(np.float64) - least) / width, 0, 1)
        return (share * 255).round().astype(np.uint8)

    def depth(self, values: np.ndarray, bits: int, name: str) -> int:
        """Bits that whole numbers are taken to have; arguments and errors as of :meth:`grey`."""
        most = int(values.max(initial=0))
        if int(values.min(initial=0)) < 0 or most >= 1 << _MOST:
            raise LoricaError(
                Code.DATA_IMAGE,
                f"{name} holds values from {values.min()} to {most}, which are no grey levels of "
                f"{_MOST} bits.",
                mend=MEND,
            )
        if 0 < bits < _MOST and most < 1 << bits:
            return bits
        depth = _LEAST if most < 1 << _LEAST and bits != _MOST else _MOST
        self._seen.setdefault(depth, name)
        if len(self._seen) > 1:
            raise LoricaError(
                Code.DATA_IMAGE,
                f"{self._seen[_MOST]} has grey levels of {_MOST} bits, {self._seen[_LEAST]} none "
                f"above {(1 << _LEAST) - 1}: it is either dark or of {_LEAST} bits.",
                mend=MEND,
            )
        return depth


def png_bits(content: bytes) -> int:
    """Significant bits of the first channel as a PNG file's sBIT chunk says; 0: it says nothing."""
    at = len(_PNG)
    while content.startswith(_PNG) and at + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        if kind == b"sBIT" and length:
            return content[at + 8] if at + 8 < len(content) else 0
        if kind in (b"IDAT", b"IEND"):
            break
        at += 12 + length
    return 0


def tiff_bits(tags: object) -> int:
    """Bits of a TIFF file's values, where they are fewer than their room; 0: nothing is said."""
    found = tags.get(_BITS_PER_SAMPLE) if hasattr(tags, "get") else None
    bits = int(found[0] if isinstance(found, tuple) else found or 0)
    return bits if 8 < bits < _MOST else 0
