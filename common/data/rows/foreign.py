"""Files that are no text, or no table, told from how they begin: what they are, and the mend."""

from __future__ import annotations

from typing import NamedTuple


class Foreign(NamedTuple):
    """What a file is, and what is to be done with it."""

    what: str
    mend: str
    """"{name}" stands for the file's name as a shell takes it."""


_SHEET = "Open it in the spreadsheet program and save the sheet as CSV (UTF-8)."
_UNPACK = "Unpack it first: {} {{name}} > NEW.csv"
_TEXT = "Export the records as a table: CSV, JSON lines or Parquet."

_BEGINNINGS = (
    (b"\x1f\x8b", Foreign("compressed by gzip", _UNPACK.format("gunzip -c"))),
    (b"BZh91AY&SY", Foreign("compressed by bzip2", _UNPACK.format("bunzip2 -c"))),
    (b"\xfd7zXZ", Foreign("compressed by xz", _UNPACK.format("unxz -c"))),
    (b"\x28\xb5\x2f\xfd", Foreign("compressed by zstd", _UNPACK.format("zstd -dc"))),
    (b"7z\xbc\xaf", Foreign("an archive of 7-Zip", "Unpack it first: 7z x {name}")),
    (b"\xd0\xcf\x11\xe0", Foreign("a file of Excel or Word in their old format", _SHEET)),
    (b"%PDF", Foreign("a PDF document", _TEXT)),
    (b"{\\rtf", Foreign("a document in rich text format", _TEXT)),
    (b"PAR1\x15", Foreign("a Parquet file", "Name it so that it ends in .parquet.")),
    (b"ARROW1\x00", Foreign("an Arrow file", "Name it so that it ends in .arrow.")),
    (
        b"SQLite format 3\x00",
        Foreign("a database of SQLite", 'At a site: data.source = "sqlite:///{name}", data.query.'),
    ),
    (b"\x89PNG", Foreign("an image", "Of images, name the folder that they lie in.")),
    (b"\xff\xd8\xff", Foreign("an image", "Of images, name the folder that they lie in.")),
)
_ZIP = b"PK\x03\x04"
_OFFICE = (b"[Content_Types].xml", b"mimetypeapplication/vnd.oasis", b"_rels/", b"xl/", b"docProps")
_SHEETS = (".xlsx", ".xlsm", ".xlsb", ".ods", ".docx", ".odt")
_PAGES = (b"<!doctype html", b"<html", b"<?xml")
LOOKED_AT = 400
"""Bytes by which files are told."""


def foreign(begin: bytes, ending: str) -> Foreign | None:
    """What a file is that begins so, if it is none of text that can be rows; else None.

    Args:
        begin: its first ``LOOKED_AT`` bytes.
        ending: of its name, in small letters; tells the kinds of zip archives apart.
    """
    for beginning, found in _BEGINNINGS:
        if begin.startswith(beginning):
            return found
    if begin.startswith(_ZIP):
        if ending in _SHEETS or any(part in begin for part in _OFFICE):
            return Foreign("a workbook or a document of an office program", _SHEET)
        return Foreign("a zip archive", "Unpack it first: unzip {name}")
    bare = begin.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if bare.startswith(_PAGES):
        return Foreign("a page of HTML or XML, no table of text", _TEXT)
    return None
