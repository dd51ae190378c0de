"""Parquet, Arrow and Feather: a file, or a folder of Parquet files, one batch in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorica.common.data.batches import BATCH_ROWS, Batch, text_array
from lorica.common.data.image_columns import IMAGE_ROWS, image_cells, is_image_type
from lorica.common.data.kinds import hidden
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    import pyarrow as pa

    from lorica.common.data.request import DataRequest


def batches(request: DataRequest) -> Iterator[Batch]:
    """Batches of Parquet or Arrow files.

    Raises:
        LoricaError: LOR-207 without pyarrow, LOR-301, LOR-302, LOR-304 damaged or of another
            format than its ending says.
    """
    need_pyarrow()
    path = request.path
    if request.kind == "parquet":
        files = _parts(path)
        for file in files:
            yield from _guarded(file, request, _parquet(file, request))
    else:
        yield from _guarded(path, request, _arrow(path, batch_rows(request)))


def need_pyarrow() -> None:
    """Return if pyarrow is installed; LOR-207 otherwise."""
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError as error:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            "Parquet, Arrow and the data check need the package pyarrow.",
            mend="pip install 'lorica[parquet]'",
        ) from error


def as_batch(
    table: pa.RecordBatch,
    request: DataRequest,
    where: str,
    *,
    before: int = 0,
    homes: Sequence[Path] = (),
) -> Batch:
    """The wanted columns of an Arrow batch, as text or images.

    Columns of images that nobody asks for are left out.

    Args:
        table: the batch.
        request: says which columns.
        where: begins the messages.
        before: rows of the source before these.
        homes: folders below which the files lie that columns of images may name.
    """
    found: Batch = {}
    for number, name in enumerate(table.schema.names):
        if request.columns is not None and name not in request.columns:
            continue
        column, place = table.column(number), f"{where}, column '{name}'"
        if name == request.image:
            side = request.image_side
            found[name] = image_cells(
                column, place, side, before=before, homes=homes, levels=request.levels
            )
        elif is_image_type(column.type):
            _refuse_image(name, request, place)
        else:
            found[name] = text_array(column, plain=name in request.plain, where=place)
    return found


def batch_rows(request: DataRequest) -> int:
    """Rows that are read at a time."""
    return IMAGE_ROWS if request.image else BATCH_ROWS


def require_columns(request: DataRequest, present: list[str]) -> None:
    """Return if all wanted columns are there, each once, before anything is read. Raises LOR-302,
    LOR-304."""
    wanted = [*(request.columns or ()), *([request.image] if request.image else ())]
    asked = present if request.columns is None else wanted
    twice = next((name for name in asked if present.count(name) > 1), None)
    if twice is not None:
        places = [str(at) for at, name in enumerate(present, 1) if name == twice]
        raise LoricaError(
            Code.DATA_MALFORMED,
            f"{request.location} has {len(places)} columns named '{twice}' (columns "
            f"{' and '.join(places)} of: {', '.join(present)}).",
            mend="Give each column a name of its own, and write the file again.",
        )
    missing = [name for name in wanted if name not in present]
    if missing:
        raise LoricaError(
            Code.DATA_COLUMN,
            f"{request.location} has no column '{missing[0]}'; its columns are: "
            f"{', '.join(present)}.",
        )


def _refuse_image(name: str, request: DataRequest, place: str) -> None:
    """Return if the column of bytes can be left out. Raises LOR-304 where text is wanted of it."""
    if request.columns is not None or name in request.plain:
        raise LoricaError(
            Code.DATA_MALFORMED,
            f"{place} holds bytes, not text.",
            mend="If they are images, name the column in data.image.",
        )


def _parts(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = (file for file in path.rglob("*") if file.suffix.lower() in (".parquet", ".pq"))
    return sorted(file for file in found if not any(map(hidden, file.relative_to(path).parts)))


def _parquet(path: Path, request: DataRequest) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        present = file.schema_arrow.names
        require_columns(request, present)
        wanted = None if request.columns is None else list(request.columns)
        yield from file.iter_batches(batch_rows(request), columns=wanted)


def _arrow(path: Path, rows: int) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    with contextlib.ExitStack() as opened:
        source = opened.enter_context(pa.memory_map(str(path), "rb"))
        try:
            reader = opened.enter_context(pa.ipc.open_file(source))
        except pa.ArrowInvalid:  # the streaming format, as `datasets` writes it
            source.seek(0)
            stream = opened.enter_context(pa.ipc.open_stream(source))
            for batch in stream:
                yield from _sliced(batch, rows)
            return
        for number in range(reader.num_record_batches):
            yield from _sliced(reader.get_batch(number), rows)


def _sliced(batch: pa.RecordBatch, rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _guarded(path: Path, request: DataRequest, found: Iterator[pa.RecordBatch]) -> Iterator[Batch]:
    import pyarrow as pa

    before = 0
    homes = [path.parent]
    try:
        for batch in found:
            if not batch.num_rows:
                continue
            require_columns(request, batch.schema.names)
            yield as_batch(batch, request, str(path), before=before, homes=homes)
            before += batch.num_rows
    except FileNotFoundError:
        raise LoricaError(Code.DATA_NOT_FOUND, f"There is no file {path}.") from None
    except PermissionError:
        raise LoricaError(
            Code.DATA_NOT_FOUND, f"{path} cannot be read: Permission denied."
        ) from None
    except (pa.ArrowException, OSError) as error:
        kind = "Parquet" if request.kind == "parquet" else "Arrow"
        raise LoricaError(
            Code.DATA_MALFORMED,
            f"{path} is damaged or no {kind} file: {_first(error)}.",
            mend="Write or fetch it anew; a table of text is named .csv, JSON lines .jsonl.",
        ) from None


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
