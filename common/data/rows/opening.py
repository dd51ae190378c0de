"""Text files opened by their byte order mark: UTF-8, UTF-16 or UTF-32; nothing is guessed."""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path
from typing import TextIO

from lorica.common.data.rows.foreign import LOOKED_AT, foreign
from lorica.common.errors import Code, LoricaError

_MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def open_text(path: Path) -> TextIO:
    """A file as text, its byte order mark left out, line ends as they are.

    Raises:
        LoricaError: LOR-303 UTF-16 without its mark; LOR-326 it is no text at all.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        begin = file.read(LOOKED_AT)
    if other := foreign(begin, path.suffix.lower()):
        raise LoricaError(
            Code.DATA_KIND,
            f"{path} is {other.what}, whatever its name says.",
            mend=other.mend.format(name=shlex.quote(path.name)),
        )
    encoding = next((name for mark, name in _MARKS if begin.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig":
        for place, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
            if len(begin) > 1 and begin[place::2].count(0) > len(begin) // 4:
                raise LoricaError(
                    Code.DATA_ENCODING,
                    f"{path} is {name} without a byte order mark, it seems.",
                    mend=f"Convert it: iconv -f {name} -t UTF-8 {shlex.quote(path.name)} > "
                    f"new{path.suffix}",
                )
    return path.open(encoding=encoding, newline="")


def not_decoded(path: Path, error: UnicodeDecodeError) -> LoricaError:
    """LOR-303 for a file that is not what its mark, or the lack of one, says."""
    said = "UTF-8" if error.encoding.startswith("utf-8") else error.encoding.upper()
    byte = error.object[error.start] if error.start < len(error.object) else 0
    return LoricaError(
        Code.DATA_ENCODING, f"{path} is not {said}: byte 0x{byte:02x} cannot be decoded."
    )
