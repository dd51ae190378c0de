"""What is to be read and by which connector."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from lorica.common.data.batches import Batch
from lorica.common.data.kinds import local_path
from lorica.common.data.levels import Levels

CONNECTORS = {
    "packaged": "lorica.common.data.packaged",
    "csv": "lorica.common.data.tables",
    "tsv": "lorica.common.data.tables",
    "jsonl": "lorica.common.data.tables",
    "json": "lorica.common.data.tables",
    "txt": "lorica.common.data.tables",
    "parquet": "lorica.common.data.columnar",
    "arrow": "lorica.common.data.columnar",
    "dataset": "lorica.common.data.datasets",
    "hub": "lorica.common.data.datasets",
    "images": "lorica.common.data.image_folder",
}
"""Kind -> the module whose ``batches(request)`` reads it."""


@dataclass(frozen=True)
class DataRequest:
    """What is to be read, and how."""

    location: str
    """As written in the plan or in site.toml."""
    kind: str
    """One of :data:`CONNECTORS`, or one that the caller adds."""
    root: Path
    """The folder that relative paths start from."""
    columns: Collection[str] | None = None
    """The columns that are needed; others may be left out. None: all."""
    plain: Collection[str] = ()
    """Columns in which lists and objects are refused."""
    test: bool = False
    """Of a source with parts, the test part."""
    split: str = ""
    """Of a source with parts, the part by name; empty: "train" or "test"."""
    table: str = ""
    """Of a folder of images: a table of their names and labels; empty: folders are labels."""
    file: str = "file"
    """The column of ``table`` with the files' names."""
    text: str = "text"
    """The column to be made, where the source has none by name."""
    label: str = "label"
    """The label's column to be made, where the source has none by name."""
    image: str = ""
    """Of a table with encoded images, their column; empty: none is read."""
    image_side: int = 256
    """Images are made smaller until their shorter side has at most this many pixels."""
    levels: Levels = field(default_factory=Levels)
    """How grey levels of more than 8 bits, and fractions, become 8 bits."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further settings of a connector."""

    @property
    def path(self) -> Path:
        """The location as a path. Raises LoricaError LOR-301 for no name a file can have."""
        return local_path(self.location, self.root)


def read_batches(request: DataRequest, connectors: dict[str, str] | None = None) -> Iterator[Batch]:
    """Batches of a source, by the connector of its kind.

    Raises:
        LoricaError: LOR-30x, LOR-32x; LOR-207 when the connector needs a package that is not
            installed.
    """
    module = import_module((connectors or CONNECTORS)[request.kind])
    read: Callable[[DataRequest], Iterator[Batch]] = module.batches
    yield from read(request)
