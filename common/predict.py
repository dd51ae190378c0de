"""Use a trained adapter: texts in, label probabilities out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorica.common.adapter_folder import load_adapter
from lorica.common.backbones import load_backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.prefix_cache import PrefixCache, predict_logits
from lorica.common.records import read_table
from lorica.common.tasks.text_classification import TextClassifier, encode


@dataclass(frozen=True)
class Prediction:
    """Probabilities of all labels for one text."""

    labels: Sequence[str]
    probabilities: Sequence[float]
    """In the order of ``labels``; they sum to 1."""

    @property
    def label(self) -> str:
        """The most probable label."""
        return self.labels[max(range(len(self.labels)), key=self.probabilities.__getitem__)]

    @property
    def probability(self) -> float:
        """Probability of :attr:`label`."""
        return max(self.probabilities)

    def top(self, count: int) -> list[tuple[str, float]]:
        """The ``count`` most probable labels with their probabilities, best first."""
        pairs = zip(self.labels, self.probabilities, strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])[:count]


class Predictor:
    """An adapter on its backbone, ready to classify."""

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
        self.plan = saved.plan.replace(backbone={"sha256": "", **source})
        backbone = load_backbone(self.plan.backbone)
        if backbone.sha256 != saved.backbone_sha256:
            raise LoricaError(
                Code.ADAPTER_MISMATCH,
                f"The adapter was trained on a backbone with SHA-256 {saved.backbone_sha256}, but "
                f"'{self.plan.backbone.source}' has {backbone.sha256}.",
                mend="Give the adapter's own backbone with --backbone.",
            )
        self._backbone = backbone
        self._classifier = TextClassifier(backbone, self.plan).eval()
        self._classifier.load_state(saved.state)

    def __call__(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts, in their order.

        Raises:
            LoricaError: LOR-303 when a text has characters that are no Unicode, LOR-305 when one
                is empty.
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
        if not texts:
            return []
        encoded = encode(self._backbone, texts, self.plan.training.max_length)
        cache = PrefixCache(self._classifier, encoded, limit_bytes=0)
        probabilities = torch.softmax(predict_logits(self._classifier, cache), dim=1).tolist()
        return [Prediction(self.plan.task.labels, row) for row in probabilities]


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


def as_csv(
    rows: Iterable[dict[str, str]], predictions: Iterable[Prediction], delimiter: str = ","
) -> Iterator[str]:
    """CSV lines: the given columns, then predicted_label and probability."""
    for number, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
        content = row | {
            "predicted_label": prediction.label,
            "probability": f"{prediction.probability:.6f}",
        }
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(content), delimiter=delimiter, lineterminator="\n")
        if number == 0:
            writer.writeheader()
        writer.writerow(content)
        yield buffer.getvalue()


def as_jsonl(rows: Iterable[dict[str, str]], predictions: Iterable[Prediction]) -> Iterator[str]:
    """JSON lines: the given keys, then predicted_label, probability and all probabilities."""
    for row, prediction in zip(rows, predictions, strict=True):
        content: dict[str, Any] = row | {
            "predicted_label": prediction.label,
            "probability": round(prediction.probability, 6),
            "probabilities": {label: round(p, 6) for label, p in prediction.top(10**9)},
        }
        yield json.dumps(content, ensure_ascii=False) + "\n"
