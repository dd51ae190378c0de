"""Rows in JSON: one object a line, a list of objects, or columns as pandas writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from lorica.common.data.batches import json_text
from lorica.common.errors import Code, LoricaError

WHOLE_BYTES = 1_000_000_000
"""Largest JSON document that is read whole."""

_HALF = re.compile("[\ud800-\udfff]")
_EXAMPLE = 'a list of objects, [{"text": …, "label": …}, …], or one object a line in a .jsonl file'


def json_lines(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of every line that is not blank."""
    for number, line in enumerate(file, 1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, parsed(line, place, mend=f"Give {_EXAMPLE}, without commas between.")


def is_object(line: str) -> bool:
    """Whether a line is a JSON object."""
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def json_document(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of every row of a JSON document.

    Rows are a list of objects, also as "data" of an object; columns by name, each a list or an
    object of rows (pandas' ``to_json``); names in "columns" and rows in "data" (its "split").

    Raises:
        LoricaError: LOR-304 another document, LOR-328 more than ``WHOLE_BYTES``.
    """
    size = path.stat().st_size
    if size > WHOLE_BYTES:
        raise LoricaError(
            Code.DATA_TOO_LARGE,
            f"{path} has {size:,} bytes; a .json file is read whole, at most {WHOLE_BYTES:,}.",
            mend="Write one object a line (.jsonl), which is read line by line.",
        )
    rows = _rows(parsed(file.read(), str(path)))
    if rows is None:
        raise LoricaError(
            Code.DATA_MALFORMED, f"{path} holds no rows of a table.", mend=f"Give {_EXAMPLE}."
        )
    for number, row in enumerate(rows, 1):
        yield f"{path}, record {number}", row


def _rows(content: Any) -> list[Any] | None:
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("data"), list):
        data, names = content["data"], content.get("columns")
        if not isinstance(names, list):
            return data if all(isinstance(row, dict) for row in data) else None
        whole = all(isinstance(row, list) and len(row) == len(names) for row in data)
        return [dict(zip(names, row, strict=True)) for row in data] if whole else None
    columns = list(content.values())
    if columns and all(isinstance(column, dict) for column in columns):
        if any(column.keys() != columns[0].keys() for column in columns):
            return None
        return [{name: content[name][key] for name in content} for key in columns[0]]
    if columns and all(isinstance(column, list) for column in columns):
        if len({len(column) for column in columns}) > 1:
            return None
        return [dict(zip(content, row, strict=True)) for row in zip(*columns, strict=True)]
    return [content] if content else None


def cells_of(
    rows: Iterable[tuple[str, Any]], plain: Collection[str]
) -> Iterator[tuple[list[str], list[str]]]:
    """(names, cells) of every row.

    Raises:
        LoricaError: LOR-304 no object, other keys than before, or a list in a ``plain`` column.
    """
    names: list[str] = []
    for place, content in rows:
        if not isinstance(content, dict) or (names and content.keys() != set(names)):
            raise LoricaError(
                Code.DATA_MALFORMED,
                f"{place}: expected an object with the "
                f"{'same keys as before: ' + ', '.join(names) if names else 'columns as keys'}.",
                mend="Write every key in every object, null where it has no value; pandas does, "
                'with df.to_json(path, orient="records", lines=True).',
            )
        names = names or list(content)
        try:
            cells = [_cell(content[key], plain=key in plain) for key in names]
        except ValueError as error:
            raise LoricaError(
                Code.DATA_MALFORMED,
                f"{place}: {error}.",
                mend="Write a text, a number, true, false or null; lists belong to tasks with "
                "several labels or with words as a list.",
            ) from None
        half = _HALF.search("".join([*names, *cells]))
        if half is not None:
            raise LoricaError(
                Code.DATA_MALFORMED,
                f"{place}: \\u{ord(half[0]):04x} is half of a character (of a surrogate pair).",
                mend="Remove it, or write the text anew from where it came from.",
            )
        yield names, cells


def parsed(text: str, place: str, *, mend: str = f"Give {_EXAMPLE}.") -> Any:
    """The JSON value in a text. Raises LOR-304, also for an object that names a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        detail = f"{place} is not JSON: {error}."
        raise LoricaError(Code.DATA_MALFORMED, detail, mend=mend) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object names {twice!r} twice")
    return found


def _cell(value: object, *, plain: bool) -> str:
    if plain and isinstance(value, list | dict):
        raise ValueError("a list or an object stands where a text or a number is expected")
    return json_text(value)
