"""Use a trained adapter: texts, images and tables in, the task's predictions out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorica.common.backbone.loading import load_backbone
from lorica.common.cache.prefix import PrefixCache, predictions
from lorica.common.data.images import decode_image
from lorica.common.data.records import Records
from lorica.common.data.request import DataRequest
from lorica.common.data.table import Table
from lorica.common.data.tables import read_table
from lorica.common.errors import Code, LoricaError
from lorica.common.saved.folder import load_adapter
from lorica.common.tasks import task_of
from lorica.common.tasks.base import Prediction


class Predictor:
    """An adapter on its backbone, ready to use."""

    def __init__(self, folder: Path, backbone_source: str = "") -> None:
        """
        Args:
            folder: an adapter folder, as a run leaves it.
            backbone_source: where to find the backbone on this machine, if not where the
                adapter's plan says.

        Raises:
            LoricaError: LOR-205 when the backbone is another than the adapter's, LOR-206 when
                the folder is no adapter, LOR-20x when the backbone cannot be loaded.
        """
        saved = load_adapter(folder)
        source = {"source": backbone_source} if backbone_source else {}
        self.plan = saved.plan.replace(
            backbone={"sha256": "", **source}, training={"precision": "float32"}
        )
        backbone = load_backbone(self.plan.backbone)
        if backbone.sha256 != saved.backbone_sha256:
            raise LoricaError(
                Code.ADAPTER_MISMATCH,
                f"The adapter was trained on a backbone with SHA-256 {saved.backbone_sha256}, but "
                f"'{self.plan.backbone.source}' has {backbone.sha256}.",
                mend="Give the adapter's own backbone with --backbone.",
            )
        self._backbone = backbone
        self._task = task_of(self.plan)
        self._model = self._task.model(backbone).eval()
        self._model.load_state(saved.state)

    @property
    def columns(self) -> list[str]:
        """Names of the table's columns that are read beside texts or images."""
        return self.plan.table.names

    @property
    def reads_images(self) -> bool:
        """Whether it is for images; for texts otherwise."""
        return self._task.traits.images

    def __call__(
        self, texts: Sequence[str], table: Mapping[str, Sequence[str]] | None = None
    ) -> list[Prediction]:
        """Predictions for texts, or for the images in the files of these names, in their order.

        Args:
            texts: or names of files.
            table: column -> one cell for each of them, "" where the value is missing; columns
                that are left out count as missing throughout.

        Raises:
            LoricaError: LOR-302 when the adapter reads no column of this name, LOR-303 when a
                text has characters that are no Unicode, LOR-305 when one is empty, LOR-312 when a
                cell is not what its column holds; LOR-301, LOR-327, LOR-328 an image cannot be
                read.
        """
        given = self._table(len(texts), table or {})
        for number, text in enumerate(texts, 1):
            if not text.strip():
                raise LoricaError(Code.DATA_EMPTY_TEXT, f"Text {number} is empty.")
            try:
                text.encode()
            except UnicodeEncodeError:  # a half of a surrogate pair, as for undecodable bytes
                raise LoricaError(
                    Code.DATA_ENCODING, f"Text {number} holds bytes that are not UTF-8."
                ) from None
        if not texts:
            return []
        if self._task.generates:
            return list(self._task.generate(self._backbone, self._model, texts))
        nothing = [""] * len(texts)
        images = _images(texts) if self._task.traits.images else None
        records = Records(list(texts), nothing, nothing, nothing, images, given)
        encoded = self._task.encode_for_use(self._backbone, records)
        cache = PrefixCache(self._model, encoded, limit_bytes=0)
        return predictions(self._task, self._model, cache)

    def _table(self, count: int, given: Mapping[str, Sequence[str]]) -> Table | None:
        for name in given:
            if name not in self.columns:
                has = ", ".join(self.columns) or "none"
                raise LoricaError(
                    Code.DATA_COLUMN,
                    f"The adapter reads no column '{name}' beside the text or image; it reads: "
                    f"{has}.",
                )
        missing = [""] * count
        cells = {name: given.get(name, missing) for name in self.columns}
        return Table.of(cells, "The table") if cells else None


def _images(names: Sequence[str]) -> list[Any]:
    return [decode_image(Path(name), name, DataRequest.image_side) for name in names]


def read_texts(path: Path, column: str) -> tuple[list[dict[str, str]], list[str]]:
    """Rows of a table and the texts in one of its columns.

    Raises:
        LoricaError: LOR-30x; LOR-302 when the column is missing.
    """
    rows = list(read_table(path, plain=[column]))
    if rows and column not in rows[0]:
        raise LoricaError(
            Code.DATA_COLUMN,
            f"{path} has no column '{column}'; its columns are: {', '.join(rows[0])}.",
            mend="Name the text's column with --text.",
        )
    return rows, [row[column] for row in rows]


def columns_of(
    rows: Sequence[Mapping[str, str]], names: Sequence[str], where: str
) -> dict[str, list[str]]:
    """These columns of a table's rows. Raises LOR-302 when one is missing; ``where`` begins it."""
    for name in names:
        if rows and name not in rows[0]:
            raise LoricaError(
                Code.DATA_COLUMN,
                f"{where} has no column '{name}', which the adapter reads; its columns are: "
                f"{', '.join(rows[0])}.",
                mend="Add the column; leave its cells empty where the value is not known.",
            )
    return {name: [row[name] for row in rows] for name in names}


def as_csv(
    rows: Iterable[dict[str, str]], predictions: Iterable[Prediction], delimiter: str = ","
) -> Iterator[str]:
    """CSV lines: the given columns, then the prediction's."""
    for number, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
        content = row | prediction.columns()
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(content), delimiter=delimiter, lineterminator="\n")
        if number == 0:
            writer.writeheader()
        writer.writerow(content)
        yield buffer.getvalue()


def as_jsonl(rows: Iterable[dict[str, str]], predictions: Iterable[Prediction]) -> Iterator[str]:
    """JSON lines: the given keys, then the prediction's."""
    for row, prediction in zip(rows, predictions, strict=True):
        content: dict[str, Any] = row | prediction.content()
        yield json.dumps(content, ensure_ascii=False) + "\n"
