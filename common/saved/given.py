"""What a trained adapter is asked about: a source of any kind that training takes, as rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorica.common.data.batches import as_list, rows_of
from lorica.common.data.image_folder import files_below
from lorica.common.data.images import decode_image
from lorica.common.data.kinds import IMAGE, IMAGE_ENDINGS, kind_of
from lorica.common.data.levels import Levels
from lorica.common.data.names.normal import label_form
from lorica.common.data.request import CONNECTORS, DataRequest, read_batches
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.traits import TRAITS

Row = dict[str, str]

_WITH_IMAGES = frozenset({"parquet", "arrow", "dataset"})


@dataclass
class Given:
    """Rows of a source, and what of them is read."""

    rows: list[Row] = field(default_factory=list)
    """All columns but those of images."""
    texts: list[str] = field(default_factory=list)
    """Of each row the text, or the image's file name; empty where it has none."""
    images: list[Any] | None = None
    """uint8 (H, W, 3) each, where the source holds or names images."""
    labels: list[str] | None = None
    """Of each row, empty where it is not known; None where no column holds labels."""

    @property
    def read(self) -> list[int]:
        """The rows that can be read: those with a text or an image."""
        return [row for row, text in enumerate(self.texts) if text.strip()]


def read_given(path: Path, plan: RunPlan, *, text: str = "", label: str | None = None) -> Given:
    """What a file or folder holds for an adapter of this plan.

    Args:
        path: CSV, TSV, text (lines, blank ones too), JSON, JSONL, Parquet, Arrow, a data set of
            `datasets`, or, of tasks of images, a folder of them.
        plan: the adapter's.
        text: the column of the text, or of images' file names, which start from the file's
            folder; empty: the plan's.
        label: the column of the right answers; None: the plan's, if it is there; empty: none.

    Raises:
        LoricaError: LOR-30x, LOR-302 when a column is missing; LOR-326 a kind that cannot be
            read here, LOR-327 to LOR-329 of images.
    """
    kind = kind_of(str(path), Path())
    images = TRAITS[plan.task.kind].images
    if kind not in CONNECTORS or (kind == "images" and not images):
        raise LoricaError(
            Code.DATA_KIND,
            f"{path} is of the kind '{kind}', which the adapter cannot read here.",
            mend="Give a table (.csv, .tsv, .txt, .json, .jsonl, .parquet, .arrow), or, of an "
            "adapter for images, a folder of them.",
        )
    levels = Levels(plan.data.window)
    column = plan.data.image or IMAGE
    request = DataRequest(
        str(path),
        kind,
        Path(),
        test=True,
        table=plan.data.table if kind == "images" and (path / plan.data.table).is_file() else "",
        file=plan.data.file,
        text=text or plan.data.text,
        label=plan.data.label if label is None else label,
        image=column if images and kind in _WITH_IMAGES else "",
        levels=levels,
        options={"blanks": True},
    )
    found = _flat(path, request) if _is_flat(request, path) else _all(request)
    held = request.image or (IMAGE if kind == "images" else "")
    names = _text_column(found, request, images=images, given=text, held=held)
    if images and not held:
        found.images = [
            decode_image(path.parent / name, name, DataRequest.image_side, levels)
            if name.strip()
            else None
            for name in names
        ]
    return replace(found, texts=names, labels=_labels(found, request, plan, label))


def _all(request: DataRequest) -> Given:
    """Every row; images apart."""
    found = Given()
    held = request.image or (IMAGE if request.kind == "images" else "")
    try:
        for batch in read_batches(request):
            columns = {name: as_list(cells) for name, cells in batch.items() if name != held}
            if held:
                found.images = [*(found.images or []), *batch[held]]
            for row in range(rows_of(batch)):
                found.rows.append({name: cells[row] for name, cells in columns.items()})
    except LoricaError as error:
        if error.code is not Code.DATA_COLUMN or not request.image:
            raise
        return _all(replace(request, image=""))  # a table that names files
    return found


def _is_flat(request: DataRequest, folder: Path) -> bool:
    return request.kind == "images" and not request.table and any(_top(folder))


def _top(folder: Path) -> Iterator[Path]:
    return (path for path in files_below(folder, IMAGE_ENDINGS) if len(path.parts) == 1)


def _flat(folder: Path, request: DataRequest) -> Given:
    """A folder whose images lie in no sub-folder: nobody says what they are."""
    names = [path.as_posix() for path in files_below(folder, IMAGE_ENDINGS)]
    side = request.image_side
    images = [decode_image(folder / name, name, side, request.levels) for name in names]
    return Given([{request.file: name} for name in names], images=images)


def _text_column(
    found: Given, request: DataRequest, *, images: bool, given: str, held: str
) -> list[str]:
    if not found.rows:
        return []
    there = found.rows[0]
    if found.images is not None and held and not given:
        name = request.file if request.file in there else ""
        return [row[name] if name else f"image {at}" for at, row in enumerate(found.rows, 1)]
    wanted = [given] if given else [request.file, request.text] if images else [request.text]
    name = next((column for column in wanted if column in there), "")
    if not name:
        raise LoricaError(
            Code.DATA_COLUMN,
            f"{request.location} has no column '{wanted[0]}'; its columns are: {', '.join(there)}.",
            mend="Name the text's column with --text.",
        )
    return [row[name] for row in found.rows]


def _labels(
    found: Given, request: DataRequest, plan: RunPlan, label: str | None
) -> list[str] | None:
    name = request.label
    if not name or not TRAITS[plan.task.kind].labelled or not found.rows:
        return None
    if name not in found.rows[0]:
        if label:
            raise LoricaError(
                Code.DATA_COLUMN,
                f"{request.location} has no column '{name}'; its columns are: "
                f"{', '.join(found.rows[0])}.",
                mend="Name the column of the right answers with --label.",
            )
        return None
    cells = [row[name].strip() for row in found.rows]
    return [label_form(cell) for cell in cells] if TRAITS[plan.task.kind].one_label_each else cells
