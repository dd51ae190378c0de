"""``lorica predict`` takes what training takes, keeps what is there, and scores what it can."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from lorica.common.backbone.loading import load_backbone
from lorica.common.cli import main
from lorica.common.plan import RunPlan
from lorica.common.saved.folder import save_adapter
from lorica.common.saved.predict import Predictor, new_names
from lorica.common.tasks import task_of
from tests.images import make_image_backbone

TEXTS = ["my card is lost", "fever and pain", "", "the doctor was tired"]
LABELS = ["lost", "pain", "rash", ""]
Predict = Callable[..., tuple[int, str, str]]


@pytest.fixture
def adapter(tmp_path: Path, small_backbone: Path) -> Path:
    plan = RunPlan().replace(
        backbone={"source": str(small_backbone)}, task={"labels": ["lost", "pain", "rash"]}
    )
    backbone = load_backbone(plan.backbone)
    save_adapter(tmp_path / "adapter", task_of(plan).start(backbone), plan, backbone)
    return tmp_path / "adapter"


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Predict:
    def start(adapter: Path, *arguments: object) -> tuple[int, str, str]:
        command = ["lorica", "predict", "-a", str(adapter), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return start


def write(path: Path, **more: list[str]) -> Path:
    columns = {"text": TEXTS, **more}
    table, kind = pa.table(columns), path.suffix[1:]
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == "feather":
        pyarrow.feather.write_feather(table, path)
    elif kind == "json":
        path.write_text(json.dumps(table.to_pylist()))
    elif kind in ("jsonl", "ndjson"):
        path.write_text("\n".join(map(json.dumps, table.to_pylist())))
    elif kind == "txt" and not more:
        path.write_text("\n".join(TEXTS) + "\n")
    else:
        mark = "\t" if kind == "tsv" else ";" if kind == "txt" else ","
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter=mark).writerows(
                [list(columns), *zip(*columns.values(), strict=True)]
            )
    return path


def rows_in(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "kind", ["csv", "tsv", "txt", "json", "jsonl", "ndjson", "parquet", "feather"]
)
def test_every_table_that_training_takes_is_read_and_scored(
    kind: str, predict: Predict, adapter: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / f"d.{kind}", label=LABELS, id=["1", "2", "3", "4"])
    status, _, errors = predict(adapter, "-f", path, "-o", tmp_path / "out.csv")
    assert status == 0, errors
    found = rows_in(tmp_path / "out.csv")
    assert [row["id"] for row in found] == ["1", "2", "3", "4"]
    assert [row["label"] for row in found] == LABELS
    given = [TEXTS[0], TEXTS[1], TEXTS[3]]
    expected = [p.label for p in Predictor(adapter)(given)]
    assert [row["predicted_label"] for row in found] == [expected[0], expected[1], "", expected[2]]
    right = sum(a == b for a, b in zip(expected, LABELS[:2], strict=False))
    assert "1 of 4 rows hold no text" in errors
    assert f"2 of 4 rows have an answer: accuracy {right / 2:.1%}" in errors


def test_lines_of_text_are_read_with_the_blank_ones(
    predict: Predict, adapter: Path, tmp_path: Path
) -> None:
    status, printed, errors = predict(adapter, "-f", write(tmp_path / "d.txt"))
    assert status == 0, errors
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [row["text"] for row in rows] == TEXTS
    assert [bool(row["predicted_label"]) for row in rows] == [True, True, False, True]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_no_column_is_overwritten(
    ending: str, predict: Predict, adapter: Path, tmp_path: Path
) -> None:
    own = [f"own {row}" for row in range(4)]
    path = write(tmp_path / "d.csv", probability=own, predicted_label=own, predicted_label_2=own)
    status, _, errors = predict(adapter, "-f", path, "-o", tmp_path / f"out.{ending}")
    assert status == 0, errors
    if ending == "csv":
        found = rows_in(tmp_path / "out.csv")
    else:
        found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for name in ("probability", "predicted_label", "predicted_label_2"):
        assert [row[name] for row in found] == own
    assert found[0]["predicted_label_3"] in ("lost", "pain", "rash")
    assert float(found[0]["probability_2"]) > 0


def test_new_names_are_never_taken() -> None:
    assert new_names(["a", "b"], ["a", "a_2", "c"]) == {"a": "a_3", "b": "b"}


@pytest.mark.parametrize("name", ["out.xlsx", "out.parquet", "out", "out.json", "d.csv"])
def test_what_it_does_not_write_is_refused_before_anything(
    name: str, predict: Predict, tmp_path: Path
) -> None:
    path = write(tmp_path / "d.csv")
    before = path.read_bytes()
    status, _, errors = predict(tmp_path / "no adapter", "-f", path, "-o", tmp_path / name)
    assert status
    assert "LOR-334" in errors
    assert path.read_bytes() == before


def test_answers_that_the_plan_lacks_are_no_score(
    predict: Predict, adapter: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "d.csv", label=["lost", "Pain", "x", "y"])
    status, printed, errors = predict(adapter, "-f", path)
    assert status == 0
    assert len(printed.splitlines()) == 5
    assert "Not scored: [LOR-306]" in errors
    status, _, errors = predict(adapter, "-f", path, "--label", "")
    assert "scored" not in errors
    status, _, errors = predict(adapter, "-f", path, "--label", "truth")
    assert "LOR-302" in errors


@pytest.fixture
def image_adapter(tmp_path: Path) -> Path:
    plan = RunPlan().replace(
        backbone={"source": str(make_image_backbone(tmp_path / "vit", "vit", spread=0.5))},
        task={"kind": "image-classification", "labels": ["dim", "bright"]},
        adapter={"kind": "head"},
    )
    backbone = load_backbone(plan.backbone)
    state = task_of(plan).start(backbone)
    generator = torch.Generator().manual_seed(0)
    state["head.weight"] = torch.randn(state["head.weight"].shape, generator=generator)
    save_adapter(tmp_path / "adapter", state, plan, backbone)
    return tmp_path / "adapter"


def pictures(folder: Path) -> None:
    for label, shade in (("dim", 60), ("bright", 180)):
        (folder / label).mkdir(parents=True)
        for number in range(2):
            Image.new("L", (16, 16), shade + number).save(folder / label / f"{number}.png")


def test_a_folder_of_images_is_read_and_scored(
    predict: Predict, image_adapter: Path, tmp_path: Path
) -> None:
    pictures(tmp_path / "d")
    (tmp_path / "d" / ".ipynb_checkpoints").mkdir()
    out = tmp_path / "out.csv"
    status, _, errors = predict(image_adapter, "-f", tmp_path / "d", "-o", out)
    assert status == 0, errors
    found = rows_in(out)
    assert [row["file"] for row in found] == [
        f"{label}/{number}.png" for label in ("bright", "dim") for number in (0, 1)
    ]
    assert "4 of 4 rows have an answer: accuracy" in errors
    names = [str(tmp_path / "d" / row["file"]) for row in found]
    expected = [p.label for p in Predictor(image_adapter)(names)]
    assert [row["predicted_label"] for row in found] == expected


def test_images_in_one_folder_in_a_table_and_in_parquet_are_read_alike(
    predict: Predict, image_adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "flat").mkdir()
    shades = [20, 90, 160, 230]
    names = [f"{number}.png" for number in range(4)]
    for name, shade in zip(names, shades, strict=True):
        Image.new("L", (16, 16), shade).save(tmp_path / "flat" / name)
    (tmp_path / "flat" / "list.csv").write_text("file,ward\n" + "".join(f"{n},a\n" for n in names))
    content = [(tmp_path / "flat" / name).read_bytes() for name in names]
    table = pa.table({"image": content, "id": [1, 2, 3, 4]})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    paths = [str(tmp_path / "flat" / name) for name in names]
    expected = [p.label for p in Predictor(image_adapter)(paths)]
    for source in ("flat", "flat/list.csv", "d.parquet"):
        out = tmp_path / "out.csv"
        status, _, errors = predict(image_adapter, "-f", tmp_path / source, "-o", out)
        assert status == 0, errors
        assert [row["predicted_label"] for row in rows_in(out)] == expected, source


def test_a_source_of_another_kind_is_refused_by_name(
    predict: Predict, adapter: Path, tmp_path: Path
) -> None:
    pictures(tmp_path / "d")
    (tmp_path / "d.ndjson").write_text('{"resourceType": "Patient"}\n')
    for source, kind in (("d", "images"), ("d.ndjson", "fhir")):
        status, _, errors = predict(adapter, "-f", tmp_path / source)
        assert status
        assert "LOR-326" in errors
        assert kind in errors
