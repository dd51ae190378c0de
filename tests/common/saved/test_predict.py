"""Prediction with a saved adapter, and its tables."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lorica.common.backbone.loading import load_backbone
from lorica.common.errors import Code
from lorica.common.plan import RunPlan
from lorica.common.saved.given import read_given
from lorica.common.saved.predict import Predictor, as_csv, as_jsonl
from lorica.common.tasks.predictions import ClassPrediction
from tests.saved_adapters import random_adapter

Refuses = Callable[[Code, Callable[[], object]], str]

TEXTS = ["my card is lost", "fever", "the doctor was very tired today again my heart has pain"]


@pytest.fixture
def adapter(tmp_path: Path, small_backbone: Path) -> Path:
    """A saved adapter with random values on the small backbone."""
    return random_adapter(
        tmp_path / "adapter", small_backbone, ["lost", "pain", "rash"], center=0.02
    )


def test_probabilities_are_a_distribution_over_all_labels_in_order(adapter: Path) -> None:
    for prediction in Predictor(adapter)(TEXTS):
        assert list(prediction.labels) == ["lost", "pain", "rash"]
        assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-6)
        assert min(prediction.probabilities) >= 0


def test_a_prediction_does_not_depend_on_other_texts_or_their_order(adapter: Path) -> None:
    predictor = Predictor(adapter)
    many = [TEXTS[i % 3] for i in range(100)]
    together = predictor(many)
    assert len({prediction.label for prediction in together}) > 1
    for text, prediction in zip(many[:3], together, strict=False):
        (alone,) = predictor([text])
        assert alone.label == prediction.label
        assert alone.probabilities == pytest.approx(prediction.probabilities, abs=1e-5)
    assert [p.label for p in predictor(many[::-1])] == [p.label for p in together][::-1]


def test_the_backbone_may_be_elsewhere(adapter: Path, small_backbone: Path, tmp_path: Path) -> None:
    expected = Predictor(adapter)(TEXTS)
    small_backbone.rename(tmp_path / "moved")
    found = Predictor(adapter, str(tmp_path / "moved"))(TEXTS)
    assert found == expected


def test_another_backbone_is_refused(
    adapter: Path, small_backbone: Path, tmp_path: Path, refuses: Refuses
) -> None:
    other = tmp_path / "other"
    shutil.copytree(small_backbone, other)
    weights = load_file(other / "model.safetensors")
    changed = {name: tensor + 1e-3 for name, tensor in weights.items()}
    save_file(changed, other / "model.safetensors", metadata={"format": "pt"})
    detail = refuses(Code.ADAPTER_MISMATCH, lambda: Predictor(adapter, str(other)))
    assert load_backbone(RunPlan().backbone.model_copy(update={"source": str(other)})).sha256 in (
        detail
    )
    refuses(Code.BACKBONE_NOT_FOUND, lambda: Predictor(adapter, str(tmp_path / "none")))


@pytest.mark.parametrize("empty", ["", " ", "\n\t"])
def test_an_empty_text_is_refused_by_number(adapter: Path, empty: str, refuses: Refuses) -> None:
    predictor = Predictor(adapter)
    detail = refuses(Code.DATA_EMPTY_TEXT, lambda: predictor(["card", empty, "fever"]))
    assert "Text 2" in detail


def test_bytes_that_are_no_text_are_refused(adapter: Path, refuses: Refuses) -> None:
    """The command line hands undecodable bytes on as halves of surrogate pairs."""
    broken = b"caf\xe9".decode("utf-8", "surrogateescape")
    predictor = Predictor(adapter)
    assert "Text 2" in refuses(Code.DATA_ENCODING, lambda: predictor(["card", broken]))


def test_no_texts_give_no_predictions(adapter: Path) -> None:
    assert Predictor(adapter)([]) == []


PREDICTION = ClassPrediction(["a", "b", "c"], [0.2, 0.5, 0.3])


def test_the_label_is_the_most_probable_one() -> None:
    assert (PREDICTION.label, PREDICTION.probability) == ("b", 0.5)
    assert PREDICTION.top(2) == [("b", 0.5), ("c", 0.3)]
    assert PREDICTION.top(99) == [("b", 0.5), ("c", 0.3), ("a", 0.2)]
    assert ClassPrediction(["a", "b"], [0.5, 0.5]).label == "a"


ROWS = [{"id": "1", "text": 'say "a, b"\nand naïve'}, {"id": "2", "text": "=plain"}]
BOTH = [PREDICTION, ClassPrediction(["a", "b", "c"], [1.0, 0.0, 0.0])]


def test_csv_lines_are_read_back_as_the_given_columns_and_the_prediction() -> None:
    written = "".join(as_csv(ROWS, BOTH))
    read = list(csv.DictReader(io.StringIO(written, newline="")))
    assert [{key: row[key] for key in ("id", "text")} for row in read] == ROWS
    assert [row["predicted_label"] for row in read] == ["b", "a"]
    assert [float(row["probability"]) for row in read] == [0.5, 1.0]
    assert written.count("predicted_label") == 1


def test_json_lines_are_read_back_with_all_probabilities() -> None:
    lines = list(as_jsonl(ROWS, BOTH))
    assert [line.count("\n") for line in lines] == [1, 1]
    read = [json.loads(line) for line in lines]
    assert [{key: row[key] for key in ("id", "text")} for row in read] == ROWS
    assert read[0]["predicted_label"] == "b" and read[0]["probability"] == 0.5
    assert read[0]["probabilities"] == {"a": 0.2, "b": 0.5, "c": 0.3}
    assert "naïve" in lines[0]


def test_rows_and_predictions_must_be_as_many() -> None:
    with pytest.raises(ValueError):
        list(as_csv(ROWS, BOTH[:1]))
    with pytest.raises(ValueError):
        list(as_jsonl(ROWS, BOTH[:1]))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_texts_are_read_with_their_rows(tmp_path: Path, suffix: str) -> None:
    tab = "\t" if suffix == "tsv" else ","
    content = f"id{tab}note\n1{tab}card\n2{tab}fever\n"
    if suffix == "jsonl":
        content = '{"id": 1, "note": "card"}\n{"id": 2, "note": "fever"}\n'
    path = tmp_path / f"d.{suffix}"
    path.write_text(content)
    given = read_given(path, RunPlan(), text="note")
    assert given.texts == ["card", "fever"]
    assert given.rows == [{"id": "1", "note": "card"}, {"id": "2", "note": "fever"}]


def test_a_missing_column_is_refused_with_those_there_are(tmp_path: Path, refuses: Refuses) -> None:
    path = tmp_path / "d.csv"
    path.write_text("id,note\n1,card\n")
    detail = refuses(Code.DATA_COLUMN, lambda: read_given(path, RunPlan()))
    assert "'text'" in detail and "id, note" in detail
    refuses(Code.DATA_NOT_FOUND, lambda: read_given(tmp_path / "none.csv", RunPlan()))
