"""What kind a source is, told from its name alone or, for folders, from what lies in it."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

from lorica.common.data.rows.foreign import LOOKED_AT, foreign
from lorica.common.errors import Code, LoricaError

PACKAGED = "embedded:"
"""Prefix of a packaged data set's name; entry points of the group "lorica.datasets"."""

HUB = "hub:"
"""Prefix of a data set on the Hugging Face hub: "hub:org/name", "hub:org/name@revision"."""

IMAGE = "image"
"""Name of the column that is made of image files."""

IMAGE_ENDINGS = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
)
"""Endings of image files."""

OTHER_IMAGES = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".dng", ".cr2", ".nef", ".arw", ".psd"}
)
"""Endings of image files that are not read; among others they are refused, never left out."""

_ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".txt": "txt",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_DATABASE = re.compile(r"[a-z][a-z0-9]*(\+[a-z0-9]+)?://", re.IGNORECASE)
_LOOKED_AT = 10_000  # entries of a folder
_JSON_BYTES = 1_000_000  # in which a document's type is looked for


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out: hidden ones (.ipynb_checkpoints, the
    "._" files of macOS), and the __MACOSX of its archives."""
    return name.startswith(".") or name == "__MACOSX"


def is_path(location: str) -> bool:
    """Whether a location is one on this machine's disks: no packaged data set, hub or database."""
    return not _elsewhere(location)


def _elsewhere(location: str) -> str:
    """The kind of a source that is no path; empty for a path."""
    if location.startswith(PACKAGED):
        return "packaged"
    if location.startswith(HUB):
        return "hub"
    return "sql" if _DATABASE.match(location) else ""


def local_path(location: str, root: Path) -> Path:
    """A location as a path from ``root``.

    Raises:
        LoricaError: LOR-301 for no name a file can have.
    """
    if not location or "\0" in location:
        raise LoricaError(Code.DATA_NOT_FOUND, f"There is no file {location!r}.")
    return root / os.path.expanduser(location)  # noqa: PTH111 - Path raises for "~nobody"


def kind_of(location: str, root: Path) -> str:
    """The kind of a source.

    Raises:
        LoricaError: LOR-301 no such path, LOR-326 none that is known.
    """
    if elsewhere := _elsewhere(location):
        return elsewhere
    path = local_path(location, root)
    try:
        if path.is_dir():
            return _kind_of_folder(path)
        if path.suffix.lower() in (".json", ".ndjson") and path.is_file():
            return _kind_of_json(path)
        kind = _ENDINGS.get(path.suffix.lower())
        exists = path.exists()
    except OSError as error:
        raise LoricaError(
            Code.DATA_NOT_FOUND, f"{path} cannot be read: {error.strerror}."
        ) from None
    if kind is None and exists:
        if other := foreign(_beginning(path), path.suffix.lower()):
            raise LoricaError(
                Code.DATA_KIND,
                f"{path} is {other.what}, which is not read.",
                mend=other.mend.format(name=shlex.quote(path.name)),
            )
        raise LoricaError(
            Code.DATA_KIND,
            f"{path} is not a file that Lorica reads: .csv, .tsv, .txt, .json, .jsonl, .ndjson, "
            ".parquet, .arrow, .feather, or a folder.",
            mend="Name the file by what is in it: a table as .csv, whatever divides its fields; "
            "one text a line as .txt; one object a line as .jsonl.",
        )
    return kind or "csv"  # absent: the connector says so


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LOOKED_AT)
    except OSError:
        return b""


def _kind_of_json(path: Path) -> str:
    """FHIR resources name their type; what else is JSON is rows, one a line or in one document."""
    with path.open("rb") as file:
        begin = file.read(_JSON_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    lines = path.suffix.lower() == ".ndjson"
    first, _, rest = begin.partition(b"\n")
    if b'"resourceType"' in (first if lines else begin) and not begin.startswith(b"["):
        return "fhir"
    try:
        one_a_line = isinstance(json.loads(first), dict) and rest.lstrip().startswith(b"{")
    except (ValueError, RecursionError):
        one_a_line = False
    return "jsonl" if lines or one_a_line else "json"


def _kind_of_folder(path: Path) -> str:
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return "dataset"
    endings = set()
    for seen, (_, folders, files) in enumerate(os.walk(path)):
        folders[:] = [name for name in folders if not hidden(name)]
        endings |= {Path(name).suffix.lower() for name in files if not hidden(name)}
        if seen > _LOOKED_AT:
            break
    if endings & {".parquet", ".pq"} and not endings & IMAGE_ENDINGS:
        return "parquet"
    if ".dcm" in endings:
        return "dicom"
    if endings & IMAGE_ENDINGS:
        return "images"
    if endings & {".ndjson", ".json"}:
        return "fhir"
    raise LoricaError(
        Code.DATA_KIND,
        f"The folder {path} is a directory in which nothing is that Lorica reads: images, DICOM, "
        "Parquet, FHIR, or a data set as `datasets` saves it.",
    )
