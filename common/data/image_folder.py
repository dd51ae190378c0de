"""Folders of images: every sub-folder a label, or a table that names files and labels.

Images are told by their endings. Symbolic links to folders and names that lead out of the folder
are refused: a table must not make a site read what nobody offered.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lorica.common.data.batches import Batch, as_list, rows_of
from lorica.common.data.images import decode_image
from lorica.common.data.kinds import IMAGE, IMAGE_ENDINGS, OTHER_IMAGES, hidden
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from lorica.common.data.request import DataRequest

_BATCH = 64
_SHOWN = 5
_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_log = logging.getLogger("lorica.data")


def batches(request: DataRequest) -> Iterator[Batch]:
    """Batches with the columns "image", "file", and the label's, or the table's columns.

    Raises:
        LoricaError: LOR-301, LOR-302, LOR-304, LOR-327, LOR-328, LOR-329.
    """
    folder = request.path
    if not folder.is_dir():
        raise LoricaError(Code.DATA_NOT_FOUND, f"There is no folder {folder}.")
    if request.table:
        rows = with_table(request, folder)
    else:
        rows = labelled(request, folder, IMAGE_ENDINGS)
    for batch in rows:
        yield {**batch, IMAGE: [_image(folder, name, request) for name in batch[request.file]]}


def with_table(request: DataRequest, folder: Path, *, rows: int = _BATCH) -> Iterator[Batch]:
    """The rows of the request's table, a few at a time, its files' names checked.

    Raises:
        LoricaError: LOR-302 without the column of files, LOR-304, LOR-329.
    """
    from lorica.common.data.tables import table_batches

    path = request.root / request.table
    if not path.exists():
        path = folder / request.table
    for batch in table_batches(path, request.plain):
        if request.file not in batch:
            raise LoricaError(
                Code.DATA_COLUMN,
                f"{path} has no column '{request.file}' (data.file); its columns are: "
                f"{', '.join(batch)}.",
            )
        for start in range(0, rows_of(batch), rows):
            yield {name: as_list(cells)[start : start + rows] for name, cells in batch.items()}


def inside(folder: Path, name: str) -> Path:
    """The file of this name in the folder, or in one below it.

    Raises:
        LoricaError: LOR-301 no such file, or a loop of links; LOR-329 it is elsewhere.
    """
    try:
        found = (folder / name).resolve(strict=True)
        home = folder.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links
        raise LoricaError(
            Code.DATA_NOT_FOUND,
            f"{folder / name} cannot be read: {getattr(error, 'strerror', None) or error}.",
        ) from None
    if not found.is_relative_to(home):
        raise LoricaError(
            Code.DATA_OUTSIDE, f"'{name}' leads out of the folder {folder}, to {found}."
        )
    return found


def files_below(folder: Path, endings: frozenset[str]) -> Iterator[Path]:
    """Files with one of the endings, in a fixed order, without hidden ones, of which the log
    tells; links to folders are refused (LOR-329)."""
    skipped: list[str] = []

    def refuse(error: OSError) -> None:
        raise LoricaError(
            Code.DATA_NOT_FOUND, f"{error.filename} cannot be read: {error.strerror}."
        )

    for here, folders, files in os.walk(folder, onerror=refuse):
        place = Path(here).relative_to(folder)
        skipped += [f"{place / name}/" for name in folders if hidden(name)]
        skipped += [
            str(place / name)
            for name in files
            if hidden(name) and Path(name).suffix.lower() in endings
        ]
        folders[:] = sorted(name for name in folders if not hidden(name))
        for name in folders:
            if (Path(here) / name).is_symlink():
                raise LoricaError(
                    Code.DATA_OUTSIDE,
                    f"{Path(here) / name} is a symbolic link to a folder; such links are not "
                    "followed.",
                )
        for name in sorted(files):
            if hidden(name):
                continue
            if Path(name).suffix.lower() in endings:
                yield place / name
            elif endings == IMAGE_ENDINGS and Path(name).suffix.lower() in OTHER_IMAGES:
                raise LoricaError(
                    Code.DATA_IMAGE,
                    f"{Path(here) / name} is an image of a format that Lorica does not read.",
                    mend="Convert the images to PNG or JPEG, for example: magick mogrify -format "
                    "png *.heic",
                )
    if skipped:
        more = f" and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
        _log.warning(
            "%s: hidden files and folders are left out: %s%s",
            folder,
            ", ".join(sorted(skipped)[:_SHOWN]),
            more,
        )


def parts_of(folder: Path) -> dict[str, str]:
    """The parts of a folder that is divided into them: "train", "validation" and "test", as far as
    there are any -> the sub-folder's name. Empty where sub-folders are labels.

    A folder is divided when all its sub-folders have the names of parts, two at least, and each
    holds folders.
    """
    try:
        folders = [path for path in folder.iterdir() if path.is_dir() and not hidden(path.name)]
        found = {_PARTS.get(path.name.lower(), ""): path.name for path in folders}
        divided = "train" in found and len(folders) == len(found) > 1 and "" not in found
        if divided and all(any(below.is_dir() for below in path.iterdir()) for path in folders):
            return found
    except OSError:  # whoever reads the folder says so
        pass
    return {}


def labelled(request: DataRequest, folder: Path, endings: frozenset[str]) -> Iterator[Batch]:
    """Names of files and their labels, a few at a time: the folders directly below ``folder``, or
    below its part, where it is divided into parts.

    Raises:
        LoricaError: LOR-301 no such part, LOR-304 a file in no sub-folder, LOR-329 a link to a
            folder.
    """
    part = _part(request, folder)
    for batch in _labelled(request, folder / part, endings):
        names = [f"{part}/{name}" if part else name for name in batch[request.file]]
        yield {**batch, request.file: names}


def _part(request: DataRequest, folder: Path) -> str:
    """The sub-folder of the part that is asked for; empty where there are no parts."""
    parts = parts_of(folder)
    if not parts and not request.split:
        return ""
    other = parts.get("test") or parts.get("validation", "")
    wanted = _PARTS.get(request.split.lower(), request.split)
    name = parts.get(wanted, "") if wanted else other if request.test else parts["train"]
    if not name:
        raise LoricaError(
            Code.DATA_NOT_FOUND,
            f"{folder} has no part '{request.split or 'test'}'; its parts are: "
            f"{', '.join(parts.values()) or 'none'}.",
        )
    rest = sorted(set(parts.values()) - {name})
    if not request.test:
        _log.warning("%s is divided: of it, %s is read, not %s", folder, name, ", ".join(rest))
    return name


def _labelled(request: DataRequest, folder: Path, endings: frozenset[str]) -> Iterator[Batch]:
    names: list[str] = []
    for path in files_below(folder, endings):
        if len(path.parts) < 2:
            raise LoricaError(
                Code.DATA_MALFORMED,
                f"{folder / path} lies in no sub-folder, so it has no label.",
                mend="Put every image into a folder named as its label, or name a table of "
                "labels in data.table.",
            )
        names.append(path.as_posix())
        if len(names) == _BATCH:
            yield _named(request, names)
            names = []
    if names:
        yield _named(request, names)


def _named(request: DataRequest, names: list[str]) -> Batch:
    return {request.file: names, request.label: [name.partition("/")[0] for name in names]}


def _image(folder: Path, name: str, request: DataRequest) -> object:
    path = inside(folder, name)
    return decode_image(path, str(path), request.image_side, request.levels)
