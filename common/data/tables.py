"""CSV, TSV, JSON and plain lines: UTF-8 or as their byte order mark says; every row whole."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lorica.common.data.batches import BATCH_ROWS, CELL_CHARACTERS, Batch
from lorica.common.data.names.normal import tidy
from lorica.common.data.rows.delimiter import delimiter_of, fields_of, said_delimiter
from lorica.common.data.rows.json_rows import (
    cells_of,
    is_object,
    json_document,
    json_lines,
)
from lorica.common.data.rows.opening import not_decoded, open_text
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from lorica.common.data.request import DataRequest

Row = dict[str, str]


def batches(request: DataRequest) -> Iterator[Batch]:
    """Batches of a file of text; all columns."""
    wanted = request.columns or [name for name in (request.text, request.label) if name]
    yield from table_batches(
        request.path,
        request.plain,
        kind=request.kind,
        wanted=wanted,
        text=request.text,
        blanks=bool(request.options.get("blanks")),
    )


def read_table(path: Path, *, plain: Collection[str] = ()) -> Iterator[Row]:
    """Rows of a file of text as dictionaries of text.

    Args:
        path: the file; its ending, in either case, says the format.
        plain: columns in which lists and objects are refused.

    Raises:
        LoricaError: LOR-301, LOR-303, LOR-304.
    """
    for batch in table_batches(path, plain):
        yield from rows_of_batch(batch)


def rows_of_batch(batch: Batch) -> Iterator[Row]:
    """The rows of a batch whose columns are lists."""
    names = list(batch)
    for cells in zip(*batch.values(), strict=True):
        yield dict(zip(names, cells, strict=True))


def table_batches(
    path: Path,
    plain: Collection[str] = (),
    *,
    kind: str = "",
    wanted: Collection[str] = (),
    text: str = "text",
    blanks: bool = False,
) -> Iterator[Batch]:
    """Columns of a file of text, ``BATCH_ROWS`` rows at a time.

    Of JSON, null becomes empty text, and whatever else is no text its JSON. Of tables the
    delimiter is told as :func:`~lorica.common.data.rows.delimiter.delimiter_of` says. A file of
    kind "txt" is a table if its first line names the column of the text, else one text a line.

    Args:
        path: the file.
        plain: columns in which lists and objects are refused.
        kind: "csv", "tsv", "jsonl", "json" or "txt"; empty: by the file's ending.
        wanted: names of columns by which the delimiter is told.
        text: name of the column of plain lines.
        blanks: whether blank lines among plain lines are records, too.

    Raises:
        LoricaError: LOR-301, LOR-303, LOR-304.
    """
    kind = kind or path.suffix.lower().removeprefix(".")
    try:
        with open_text(path) as file:
            if kind in ("jsonl", "ndjson"):
                yield from _json_batches(cells_of(json_lines(file, path), plain))
            elif kind == "json":
                yield from _json_batches(cells_of(json_document(file, path), plain))
            else:
                yield from _delimited(file, path, kind, wanted or [text], text, blanks)
    except UnicodeDecodeError as error:
        raise not_decoded(path, error) from None
    except (FileNotFoundError, ValueError):  # ValueError: no name a file can have
        raise LoricaError(Code.DATA_NOT_FOUND, f"There is no file {path}.") from None
    except OSError as error:
        raise LoricaError(
            Code.DATA_NOT_FOUND, f"{path} cannot be read: {error.strerror}."
        ) from error


def _delimited(
    file: TextIO, path: Path, kind: str, wanted: Collection[str], text: str, blanks: bool
) -> Iterator[Batch]:
    """A table, or plain lines."""
    first, above = _first_line(file)
    said = said_delimiter(first)
    header = file.readline() if said else first
    if kind != "txt" and is_object(header):
        raise LoricaError(
            Code.DATA_KIND,
            f"{path} holds JSON, one object a line, and no table.",
            mend="Name it so that it ends in .jsonl.",
        )
    own = "\t" if kind == "tsv" else ","
    mark = said or delimiter_of(header, own, wanted)
    if kind == "txt" and not said and text not in fields_of(header, mark):
        yield from _lines(chain(above, [first], file), text, blanks=blanks)
        return
    lines = chain([header] if header else [], file)
    before = len(above) + bool(said)
    yield from _csv_batches(lines, path, mark, wanted, before=before, blanks=blanks)


def _first_line(file: TextIO) -> tuple[str, list[str]]:
    """The first line in which something stands, and the blank ones above it."""
    above: list[str] = []
    while (line := file.readline()) and not line.strip():
        above.append(line)
    return line, above


def _lines(lines: Iterator[str], text: str, *, blanks: bool) -> Iterator[Batch]:
    """One text a line."""
    rows: list[list[str]] = []
    for line in lines:
        bare = line.rstrip("\r\n")
        if bare.strip() or (blanks and line):
            rows.append([bare])
        if len(rows) == BATCH_ROWS:
            yield from _columns([text], rows)
            rows = []
    yield from _columns([text], rows)


def _csv_batches(
    file: Iterator[str],
    path: Path,
    delimiter: str,
    wanted: Collection[str],
    *,
    before: int,
    blanks: bool,
) -> Iterator[Batch]:
    """A table's rows. A row of no cell but empty ones is none, as a blank line is none, but for
    ``blanks``; empty cells beyond the header's are left out. ``before``: lines above the header."""
    csv.field_size_limit(CELL_CHARACTERS)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        given = next(reader, None)
        header = _names(given or [], wanted)
        if not header or len(set(header)) != len(header):
            raise LoricaError(
                Code.DATA_MALFORMED,
                f"{path} has {_wrong(header)}.",
                mend=_HEADED if not header else _NAMED_ONCE,
            )
        width = len(header)
        rows: list[list[str]] = []
        for fields in reader:
            if fields == [_END_OF_DOS]:
                continue
            if not any(map(str.strip, fields)) and (len(fields) != width or width > 1):
                if not (blanks and fields):
                    continue
                fields = [""] * width
            if len(fields) != width:
                if len(fields) < width or any(map(str.strip, fields[width:])):
                    yield from _columns(header, rows)  # what is whole comes first, as row by row
                    raise LoricaError(
                        Code.DATA_MALFORMED,
                        f"{path}, line {reader.line_num + before}: {len(fields)} fields where the "
                        f"header has {width}.",
                        mend=_ABOVE if width == 1 else None,
                    )
                fields = fields[:width]
            rows.append(fields)
            if len(rows) == BATCH_ROWS:
                yield from _columns(header, rows)
                rows = []
        yield from _columns(header, rows)
    except csv.Error as error:
        raise LoricaError(
            Code.DATA_MALFORMED,
            f"{path}, line {reader.line_num + before}: {error}.",
            mend=_QUOTING,
        ) from None


_END_OF_DOS = "\x1a"
"""How old programs end a file."""

_HEADED = "Give the file a first line with the columns' names, and below it one record a row."
_NAMED_ONCE = "Give each column a name of its own."
_QUOTING = (
    'A field with commas, line breaks or quotes stands in quotes ("), and a quote within it is '
    'written twice (""), not with a backslash.'
)
_ABOVE = (
    "The file's first line is taken for the header with the columns' names: delete what stands "
    "above it."
)


def _names(given: list[str], wanted: Collection[str]) -> list[str]:
    """Columns' names as people would write them, without blanks at their ends and what is
    invisible, unless they are wanted as they are. Several without a name are called by place."""
    names = [name if name in wanted else tidy(name) for name in given]
    if names.count("") > 1:
        named = [name or f"column {place}" for place, name in enumerate(names, 1)]
        names = named if any(names) else []
    return names


def _wrong(header: list[str]) -> str:
    if not header:
        return "no header"
    twice = next(name for name in header if header.count(name) > 1)
    return f"a column name twice, '{twice}'; its columns are: {', '.join(header)}"


def _columns(header: list[str], rows: list[list[str]]) -> Iterator[Batch]:
    if rows:
        yield {
            name: list(cells) for name, cells in zip(header, zip(*rows, strict=True), strict=True)
        }


def _json_batches(found: Iterator[tuple[list[str], list[str]]]) -> Iterator[Batch]:
    names: list[str] = []
    rows: list[list[str]] = []
    for names, cells in found:
        rows.append(cells)
        if len(rows) == BATCH_ROWS:
            yield from _columns(names, rows)
            rows = []
    yield from _columns(names, rows)
