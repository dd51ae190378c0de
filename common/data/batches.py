"""Batches of columns, as lists or as Arrow arrays, and the way from Arrow to text."""

from __future__ import annotations

import json
import math
import uuid
from typing import TYPE_CHECKING, Any

from lorica.common.data.names.normal import forms, fraction_form, value_form
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:  # an extra
    import pyarrow as pa

BATCH_ROWS = 16_384
"""Rows of a batch: bounds what a connector holds."""

CELL_CHARACTERS = 10_000_000
"""Largest text of one cell."""

_UUID_BYTES = 16

Column = Any
"""A list of cells, or an Arrow array of strings."""

Batch = dict[str, Column]
"""Columns of equal length by name."""


def as_list(column: Column) -> list[Any]:
    """The column's cells."""
    return column if isinstance(column, list) else list(column.to_pylist())


def as_arrow(column: Column) -> pa.Array:
    """The column as an Arrow array of strings."""
    import pyarrow as pa

    return pa.array(column, pa.string()) if isinstance(column, list) else column


def rows_of(batch: Batch) -> int:
    """Number of rows."""
    return len(next(iter(batch.values()))) if batch else 0


def json_text(value: object) -> str:
    """A value as a cell: text as it is, null and NaN as empty text, numbers in their normal form
    (1000.0 is 1000), all else as JSON."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return fraction_form(json.dumps(value))
    return json.dumps(value, ensure_ascii=False, default=str)


def text_array(array: pa.Array, *, plain: bool, where: str) -> pa.Array:
    """An Arrow array of any type as strings without nulls; numbers and times in their normal form,
    bytes of a fixed number (UUIDs) in hex.

    Raises:
        LoricaError: LOR-303 text that is not UTF-8, LOR-304 bytes, or lists in a ``plain``
            column, LOR-328 a text beyond ``CELL_CHARACTERS``.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        return text_array(array.dictionary_decode(), plain=plain, where=where)
    if isinstance(kind, pa.BaseExtensionType):
        return text_array(array.storage, plain=plain, where=where)
    if pa.types.is_fixed_size_binary(kind):
        cells = ["" if each is None else _bytes_text(each) for each in array.to_pylist()]
        return pa.array(cells, pa.string())
    if pa.types.is_null(kind):
        return pa.array([""] * len(array), pa.string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise LoricaError(Code.DATA_MALFORMED, f"{where} holds bytes, not text.")
    if pa.types.is_nested(kind):
        if plain:
            raise LoricaError(
                Code.DATA_MALFORMED,
                f"{where}: a list or an object stands where a text or a number is expected.",
            )
        return pa.array([json_text(value) for value in array.to_pylist()], pa.string())
    if pa.types.is_floating(kind):
        array = pc.if_else(pc.is_nan(array), None, array)
    if is_text(kind):
        _check_text(array, where)
    text = pc.fill_null(pc.cast(array, pa.string()), "")
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_timestamp(kind):
        distinct = text.dictionary_encode()
        form = fraction_form if pa.types.is_floating(kind) else value_form
        named = pa.array(forms(distinct.dictionary.to_pylist(), form), pa.string())
        return pc.take(named, distinct.indices)
    return text


def _bytes_text(value: bytes) -> str:
    """Bytes of a fixed number, which are an id or a hash: 16 of them as a UUID is written, others
    in hex."""
    return str(uuid.UUID(bytes=value)) if len(value) == _UUID_BYTES else value.hex()


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is text of some sort."""
    import pyarrow as pa

    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _check_text(array: pa.Array, where: str) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        raise LoricaError(Code.DATA_ENCODING, f"{where} holds text that is not UTF-8.") from None
    longest = pc.max(pc.binary_length(array)).as_py() or 0
    if longest > CELL_CHARACTERS:
        raise LoricaError(
            Code.DATA_TOO_LARGE,
            f"{where} holds a text of {longest:,} bytes; the limit is {CELL_CHARACTERS:,}.",
        )
