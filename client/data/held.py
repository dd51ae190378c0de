"""Records in memory, or, when their texts are many, with the texts in a file mapped into memory.

The file is made nameless in the site's own folder (readable by its owner alone), so that it is
gone when the process ends, however it ends: no copy of the records stays behind.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, overload

import numpy as np

from lorica.common.data.records import Gathered, Records, collect
from lorica.common.machine.files import storage_errors

if TYPE_CHECKING:
    import pyarrow as pa

IN_MEMORY_CHARACTERS = 200_000_000
"""Characters of text from which texts are held in a file: about 300 MB as Python's strings."""


def hold(parts: Iterable[Records], where: str, folder: Path) -> Records:
    """The records of all parts.

    Args:
        parts: as they are read.
        where: the source, for messages.
        folder: where the file of texts is made.

    Raises:
        LoricaError: LOR-304 there is no record, LOR-601 and LOR-602 the file cannot be written.
    """
    remaining = iter(parts)
    first: list[Records] = []
    characters = 0
    for part in remaining:
        first.append(part)
        characters += sum(map(len, part.texts))
        if characters > IN_MEMORY_CHARACTERS and _has_pyarrow():
            return _on_disk(chain(first, remaining), folder)
    return collect(first, where)


class MappedTexts(Sequence[str]):
    """Texts in an Arrow file; a text is made when it is asked for. A view shares the file."""

    def __init__(self, chunks: list[pa.Array], rows: np.ndarray | None = None) -> None:
        """
        Args:
            chunks: string arrays over mapped memory.
            rows: the view's rows, shape (n,), int64; None: all.
        """
        self._chunks = chunks
        self._starts = np.cumsum([0, *map(len, chunks)])
        self._rows = rows

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> MappedTexts: ...
    def __getitem__(self, row: int | slice) -> str | MappedTexts:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        at = range(len(self))[row]
        at = at if self._rows is None else int(self._rows[at])
        chunk = int(np.searchsorted(self._starts, at, side="right")) - 1
        return str(self._chunks[chunk][at - int(self._starts[chunk])].as_py())

    def __iter__(self) -> Iterator[str]:
        if self._rows is not None:
            yield from (self[row] for row in range(len(self)))
            return
        for chunk in self._chunks:
            for start in range(0, len(chunk), _ITERATED):
                yield from chunk.slice(start, _ITERATED).to_pylist()

    def take(self, rows: Sequence[int] | np.ndarray) -> MappedTexts:
        """The view of these rows of this view."""
        chosen = np.asarray(rows, dtype=np.int64)
        return MappedTexts(self._chunks, chosen if self._rows is None else self._rows[chosen])


_ITERATED = 4096


def _on_disk(parts: Iterable[Records], folder: Path) -> Records:
    import pyarrow as pa

    rest = Gathered("texts")
    schema = pa.schema([("text", pa.string())])
    with storage_errors(folder):
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the texts
        with pa.ipc.new_file(pa.PythonFile(file, "w"), schema) as writer:
            for part in parts:
                writer.write_batch(pa.record_batch([pa.array(part.texts, pa.string())], schema))
                rest.add(part)
        file.flush()
    return rest.records(texts=MappedTexts(_mapped(file)))


def _mapped(file: IO[bytes]) -> list[pa.Array]:
    import pyarrow as pa

    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
    return [reader.get_batch(i).column(0) for i in range(reader.num_record_batches)]


def _has_pyarrow() -> bool:
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True
