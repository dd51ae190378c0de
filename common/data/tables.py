"""CSV, TSV and JSONL: UTF-8, strict, every row whole."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lorica.common.data.batches import BATCH_ROWS, CELL_CHARACTERS, Batch, json_text
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from lorica.common.data.request import DataRequest

Row = dict[str, str]


def batches(request: DataRequest) -> Iterator[Batch]:
    """Batches of a .csv, .tsv or .jsonl file; all columns."""
    yield from table_batches(request.path, request.plain, kind=request.kind)


def read_table(path: Path, *, plain: Collection[str] = ()) -> Iterator[Row]:
    """Rows of a .csv, .tsv or .jsonl file as dictionaries of text.

    Args:
        path: the file; its ending, in either case, says the format.
        plain: columns in which lists and objects are refused.

    Raises:
        LoricaError: LOR-301, LOR-303, LOR-304.
    """
    for batch in table_batches(path, plain):
        names = list(batch)
        for cells in zip(*batch.values(), strict=True):
            yield dict(zip(names, cells, strict=True))


def table_batches(path: Path, plain: Collection[str] = (), *, kind: str = "") -> Iterator[Batch]:
    """Columns of a .csv, .tsv or .jsonl file, ``BATCH_ROWS`` rows at a time.

    Of JSON, null becomes empty text, and whatever else is no text its JSON.

    Raises:
        LoricaError: LOR-301, LOR-303, LOR-304.
    """
    kind = kind or path.suffix.lower().removeprefix(".")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if kind == "jsonl":
                yield from _json_batches(file, path, plain)
            else:
                yield from _csv_batches(file, path, "\t" if kind == "tsv" else ",")
    except UnicodeDecodeError as error:
        raise LoricaError(
            Code.DATA_ENCODING,
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} cannot be decoded.",
        ) from None
    except (FileNotFoundError, ValueError):  # ValueError: no name a file can have
        raise LoricaError(Code.DATA_NOT_FOUND, f"There is no file {path}.") from None
    except OSError as error:
        raise LoricaError(
            Code.DATA_NOT_FOUND, f"{path} cannot be read: {error.strerror}."
        ) from error


def _csv_batches(file: Iterator[str], path: Path, delimiter: str) -> Iterator[Batch]:
    csv.field_size_limit(CELL_CHARACTERS)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if not header or len(set(header)) != len(header):
            what = "a column name twice" if header else "no header"
            raise LoricaError(Code.DATA_MALFORMED, f"{path} has {what}.")
        rows: list[list[str]] = []
        for fields in reader:
            if not fields:
                continue  # a blank line
            if len(fields) != len(header):
                yield from _columns(header, rows)  # what is whole comes first, as row by row
                raise LoricaError(
                    Code.DATA_MALFORMED,
                    f"{path}, line {reader.line_num}: {len(fields)} fields where the header has "
                    f"{len(header)}.",
                )
            rows.append(fields)
            if len(rows) == BATCH_ROWS:
                yield from _columns(header, rows)
                rows = []
        yield from _columns(header, rows)
    except csv.Error as error:
        raise LoricaError(
            Code.DATA_MALFORMED, f"{path}, line {reader.line_num}: {error}."
        ) from None


def _columns(header: list[str], rows: list[list[str]]) -> Iterator[Batch]:
    if rows:
        yield {
            name: list(cells) for name, cells in zip(header, zip(*rows, strict=True), strict=True)
        }


def _json_batches(file: Iterator[str], path: Path, plain: Collection[str]) -> Iterator[Batch]:
    names: list[str] = []
    rows: list[list[str]] = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LoricaError(
                Code.DATA_MALFORMED, f"{path}, line {number} is not JSON: {error}."
            ) from None
        if not isinstance(content, dict) or (names and content.keys() != set(names)):
            raise LoricaError(
                Code.DATA_MALFORMED,
                f"{path}, line {number}: expected an object with the "
                f"{'same keys as before: ' + ', '.join(names) if names else 'columns as keys'}"
                ".",
            )
        names = names or list(content)
        try:
            row = [_cell(content[key], plain=key in plain) for key in names]
            "".join([*names, *row]).encode()
        except ValueError as error:
            raise LoricaError(Code.DATA_MALFORMED, f"{path}, line {number}: {error}.") from None
        rows.append(row)
        if len(rows) == BATCH_ROWS:
            yield from _columns(names, rows)
            rows = []
    yield from _columns(names, rows)


def _cell(value: object, *, plain: bool) -> str:
    if plain and isinstance(value, list | dict):
        raise ValueError("a list or an object stands where a text or a number is expected")
    return json_text(value)
