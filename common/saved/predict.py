"""Use a trained adapter: texts, images and tables in, the task's predictions out."""

from __future__ import annotations

import csv
import io
import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorica.common.cache.prefix import PrefixCache, judgements
from lorica.common.data.images import decode_image
from lorica.common.data.levels import Levels
from lorica.common.data.records import Records
from lorica.common.data.request import DataRequest
from lorica.common.data.table import Table
from lorica.common.data.tables import Row
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.course import Precision
from lorica.common.plan.traits import TRAITS
from lorica.common.saved.folder import load_adapter
from lorica.common.saved.ready import ready_model
from lorica.common.tasks.base import Metrics, Prediction


class Predictor:
    """An adapter on its backbone, ready to use, by several threads at a time, too."""

    def __init__(
        self, folder: Path, backbone_source: str = "", precision: Precision = "float32"
    ) -> None:
        """
        Args:
            folder: an adapter folder, as a run leaves it.
            backbone_source: where to find the backbone on this machine, if not where the
                adapter's plan says.
            precision: what the encoder computes in; "auto": bfloat16 where there are units.

        Raises:
            LoricaError: LOR-205 when the backbone is another than the adapter's, LOR-206 when
                the folder is no adapter, LOR-208 when there are no bfloat16 units, LOR-20x when
                the backbone cannot be loaded.
        """
        saved = load_adapter(folder)
        self.plan = saved.plan.replace(training={"precision": "float32"})
        backbone = saved.backbone(backbone_source)
        self._backbone = backbone
        self._one_at_a_time = threading.Lock()  # tokenizers and generation keep states of a call
        self._ready = ready_model(saved, backbone, precision)
        self._task, self._model = self._ready.task, self._ready.model

    @property
    def columns(self) -> list[str]:
        """Names of the table's columns that are read beside texts or images."""
        return self.plan.table.names

    @property
    def numbers(self) -> str:
        """What the encoder computes in: "float32" or "bfloat16"."""
        return str(self._model.numbers).removeprefix("torch.")

    @property
    def generates(self) -> bool:
        """Whether it writes answers, which no metric of :meth:`score` judges."""
        return self._task.generates

    @property
    def reads_images(self) -> bool:
        """Whether it is for images; for texts otherwise."""
        return self._task.traits.images

    def __call__(
        self,
        texts: Sequence[str],
        table: Mapping[str, Sequence[str]] | None = None,
        images: Sequence[Any] | None = None,
    ) -> list[Prediction]:
        """Predictions for texts, or for the images in the files of these names, in their order.

        Args:
            texts: or names of files.
            table: column -> one cell for each of them, "" where the value is missing; columns
                that are left out count as missing throughout.
            images: uint8 (H, W, 3) each, where they are at hand; ``texts`` then only names them.

        Raises:
            LoricaError: LOR-302 when the adapter reads no column of this name, LOR-303 when a
                text has characters that are no Unicode, LOR-305 when one is empty, LOR-312 when a
                cell is not what its column holds; LOR-301, LOR-327, LOR-328 an image cannot be
                read.
        """
        for number, text in enumerate(texts, 1):
            if not text.strip():
                raise LoricaError(Code.DATA_EMPTY_TEXT, f"Text {number} is empty.")
            try:
                text.encode()
            except UnicodeEncodeError:  # a half of a surrogate pair, as for undecodable bytes
                raise LoricaError(
                    Code.DATA_ENCODING, f"Text {number} holds bytes that are not UTF-8."
                ) from None
        self._table(len(texts), table or {})
        if not texts:
            return []
        if self._task.generates:
            with self._one_at_a_time:
                return list(self._task.generate(self._backbone, self._model, texts))
        records = self._records(texts, [""] * len(texts), table, images)
        with self._one_at_a_time:
            encoded = self._task.encode_for_use(self._backbone, records)
        return self._ready.answers(encoded)

    def score(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        table: Mapping[str, Sequence[str]] | None = None,
        images: Sequence[Any] | None = None,
    ) -> Metrics:
        """How good the adapter is on records whose right answers are known; at least one.

        Raises:
            LoricaError: LOR-306, LOR-311 an answer that is not the plan's, and as of a call.
        """
        records = self._records(texts, list(labels), table, images)
        self._task.check(records, where="The given data")
        encoded = self._task.encode(self._backbone, records)
        targets = self._task.targets(records, encoded)
        cache = PrefixCache(self._model, encoded, limit_bytes=0)
        return self._task.metrics(judgements(self._task, self._model, cache, targets))

    def _records(
        self,
        texts: Sequence[str],
        labels: list[str],
        table: Mapping[str, Sequence[str]] | None,
        images: Sequence[Any] | None,
    ) -> Records:
        given = self._table(len(texts), table or {})
        nothing = [""] * len(texts)
        held: list[Any] | None = None
        if self._task.traits.images:
            held = _images(texts, self.plan) if images is None else list(images)
        merged = self.plan.data.alike == "merge"
        return Records(list(texts), labels, nothing, nothing, held, given, merged)

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


def record_of(plan: RunPlan, text: str, cells: Mapping[str, str]) -> Records:
    """One record without an answer, as an adapter of this plan reads it.

    Args:
        plan: the adapter's.
        text: or, of tasks of images, the name of a file.
        cells: column of the table -> its cell; columns that are left out count as missing.

    Raises:
        LoricaError: LOR-302 when the adapter reads no column of this name; LOR-301, LOR-327,
            LOR-328 an image cannot be read.
    """
    names = plan.table.names
    for name in cells:
        if name not in names:
            raise LoricaError(
                Code.DATA_COLUMN,
                f"The adapter reads no column '{name}' beside the text or image; it reads: "
                f"{', '.join(names) or 'none'}.",
            )
    table = None
    if names:
        table = Table.of({name: [cells.get(name, "")] for name in names}, "The table")
    images = _images([text], plan) if TRAITS[plan.task.kind].images else None
    return Records([text], [""], [""], [""], images, table)


def _images(names: Sequence[str], plan: RunPlan) -> list[Any]:
    levels = Levels(plan.data.window)
    return [decode_image(Path(name), name, DataRequest.image_side, levels) for name in names]


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
    rows: Iterable[Row], predictions: Iterable[Prediction | None], delimiter: str = ","
) -> Iterator[str]:
    """CSV lines: the given columns, then the prediction's, empty where there is none."""
    for number, content in enumerate(_beside(rows, predictions, lambda given: given.columns(), "")):
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(content), delimiter=delimiter, lineterminator="\n")
        if number == 0:
            writer.writeheader()
        writer.writerow(content)
        yield buffer.getvalue()


def as_jsonl(rows: Iterable[Row], predictions: Iterable[Prediction | None]) -> Iterator[str]:
    """JSON lines: the given keys, then the prediction's, null where there is none."""
    for content in _beside(rows, predictions, lambda given: given.content(), None):
        yield json.dumps(content, ensure_ascii=False) + "\n"


def _beside(
    rows: Iterable[Row],
    predictions: Iterable[Prediction | None],
    of: Callable[[Prediction], Mapping[str, Any]],
    nothing: object,
) -> Iterator[dict[str, Any]]:
    """Rows with their predictions beside them. A column that is there already stays, and the
    prediction's is called otherwise."""
    listed = list(predictions)
    first = next((prediction for prediction in listed if prediction is not None), None)
    own = list(of(first)) if first is not None else []
    names: dict[str, str] = {}
    for row, prediction in zip(rows, listed, strict=True):
        names = names or new_names(own, row)
        found = dict.fromkeys(own, nothing) if prediction is None else of(prediction)
        yield {**row, **{names[name]: value for name, value in found.items()}}


def new_names(names: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """Names -> themselves, or, of those that are taken, with the first number that is free."""
    given, found = set(taken), {}
    for name in names:
        free = (f"{name}_{number}" for number in itertools.count(2))
        found[name] = name if name not in given else next(new for new in free if new not in given)
        given.add(found[name])
    return found
