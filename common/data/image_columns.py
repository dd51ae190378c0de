"""Images in columns of tables: their encoded bytes, or bytes and a path, as ``datasets`` has them.

A cell may hold no bytes but the path of a file. Only files below the source's own folder are
opened: a table must not make a machine read what nobody offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorica.common.data.image_folder import inside
from lorica.common.data.images import decode_image
from lorica.common.data.levels import Levels
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_ROWS = 64
"""Rows of a batch with images: what is held beside the records."""


def is_image_type(kind: pa.DataType) -> bool:
    """Whether an Arrow type can hold encoded images: bytes, or a struct of bytes and path."""
    import pyarrow as pa

    is_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    if any(check(kind) for check in is_bytes):
        return True
    if not pa.types.is_struct(kind):
        return False
    names = {kind.field(place).name for place in range(kind.num_fields)}
    return "bytes" in names and names <= {"bytes", "path"}


def image_cells(
    array: pa.Array,
    where: str,
    side: int,
    *,
    before: int = 0,
    homes: Sequence[Path] = (),
    levels: Levels | None = None,
) -> list[np.ndarray]:
    """Images of an Arrow column.

    Args:
        array: of bytes, or of ``datasets``' image feature.
        where: begins the messages.
        side: as of :func:`~lorica.common.data.images.decode_image`.
        before: rows of the source before these, for the messages.
        homes: folders below which files may lie that cells name; the first is where relative
            paths start.
        levels: as of decode_image.

    Raises:
        LoricaError: LOR-304 another type; LOR-327 no image, or none that can be read; LOR-301,
            LOR-328, LOR-329.
    """
    if not is_image_type(array.type):
        raise LoricaError(
            Code.DATA_MALFORMED,
            f"{where} holds {array.type}, not images (bytes, or bytes and path).",
            mend="Name the column with images in data.image.",
        )
    found = []
    for row, value in enumerate(array, before + 1):
        name = f"{where}, row {row}"
        found.append(decode_image(_source(value.as_py(), name, homes), name, side, levels))
    return found


def _source(value: Any, name: str, homes: Sequence[Path]) -> Path | bytes:
    if isinstance(value, dict):
        path = value.get("path")
        if value["bytes"] is None and path:
            return _file(path, name, homes)
        value = value["bytes"]
    if not value:
        raise LoricaError(Code.DATA_IMAGE, f"{name} holds no image.")
    return bytes(value)


def _file(path: str, name: str, homes: Sequence[Path]) -> Path:
    refusal = LoricaError(Code.DATA_OUTSIDE, f"{name} names a file, '{path}', outside the source.")
    for home in homes:
        try:
            return inside(home, path)
        except LoricaError as error:
            refusal = LoricaError(error.code, f"{name}: {error.detail}", mend=error.mend)
    raise refusal
