"""Text or image with a table beside it: the numbers a table becomes, the head, and its use."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lorica.client.mechanism.per_sample import enable_per_sample_gradients
from lorica.common.backbone.loading import load_backbone
from lorica.common.cache.prefix import PrefixCache
from lorica.common.cache.shelf import CacheShelf
from lorica.common.cli.command import app
from lorica.common.data.records import Records
from lorica.common.data.table import Table
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.table import TablePlan
from lorica.common.saved.folder import save_adapter
from lorica.common.saved.predict import Predictor
from lorica.common.tasks import task_of
from lorica.common.tasks.fusion.inputs import table_values
from lorica.common.tasks.fusion.task import FusionHead
from lorica.common.tasks.run_data import load_data
from lorica.common.tasks.views import ViewNumbers
from tests.tasks import plan_of, rows_of, write_backbone, write_data

Refuses = Callable[[Code, Callable[[], object]], str]
KINDS = ["text-table-classification", "image-table-classification"]
PLAN = TablePlan(
    columns=["age", "creatinine"],
    centers=[50.0, 90.0],
    scales=[20.0, 40.0],
    cut=2.0,
    categories=["ward = er | day"],
)


def records_of(**cells: list[str]) -> Records:
    count = len(next(iter(cells.values())))
    nothing = [""] * count
    return Records(["t"] * count, nothing, nothing, nothing, None, Table.of(cells, "here"))


def test_cells_become_scaled_numbers_cut_to_the_plans_bounds() -> None:
    """Against numbers worked out by hand."""
    records = records_of(
        age=["70", " 40 ", "", "1e9"],
        creatinine=["90", "-10.", "+110", ""],
        ward=["er", "", "day", "er"],
    )
    found = table_values(PLAN, records, "here") * math.sqrt(3)
    expected = [
        [1.0, 0, 0.0, 0, 1, 0, 0],
        [-0.5, 0, -2.0, 0, 0, 0, 1],
        [0.0, 1, 0.5, 0, 0, 1, 0],
        [2.0, 0, 0.0, 1, 1, 0, 0],
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))
    assert found.shape[1] == PLAN.inputs
    whole = table_values(PLAN, replace(records, table=None), "here")
    empty = records_of(age=[""] * 4, creatinine=[""] * 4, ward=[""] * 4)
    assert whole.equal(table_values(PLAN, empty, "here"))


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.just(""), min_size=1, max_size=9)
)
def test_no_cell_makes_a_record_longer_than_the_cut(cells: list[Any]) -> None:
    texts = [str(cell) for cell in cells]
    records = records_of(age=texts, creatinine=texts[::-1], ward=["er"] * len(texts))
    assert float(table_values(PLAN, records, "here").norm(dim=1).max()) <= 2.0 * (1 + 1e-6)


def test_what_a_record_becomes_depends_on_it_alone() -> None:
    """The same row among others that are far larger; nothing is learnt from the data."""
    alone = records_of(age=["61"], creatinine=["120"], ward=["er"])
    among = records_of(age=["1e6", "61"], creatinine=["9999", "120"], ward=["day", "er"])
    first, second = table_values(PLAN, alone, "")[0], table_values(PLAN, among, "")[1]
    assert first.equal(second)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"columns": ["a"], "centers": [1.0]}, r"table\.scales must have one number for each"),
    ({"columns": ["a"], "scales": [1.0]}, r"table\.centers must have one number"),
    ({"columns": ["a"], "centers": [0.0], "scales": [0.0]}, "must be above 0"),
    ({"columns": ["a"], "centers": [0.0], "scales": [-1.0]}, "must be above 0"),
    ({"columns": ["a"], "centers": [math.nan], "scales": [1.0]}, "must be finite"),
    ({"columns": ["a"], "centers": [0.0], "scales": [math.inf]}, "must be finite"),
    ({"columns": ["a", "a"], "centers": [0, 0], "scales": [1, 1]}, "name 'a' twice"),
    ({"columns": [" a"], "centers": [0.0], "scales": [1.0]}, "begins or ends with a blank"),
    ({"columns": ["label"], "centers": [0.0], "scales": [1.0]}, r"the column data\.label"),
    ({"columns": ["text"], "centers": [0.0], "scales": [1.0]}, r"the column data\.text"),
    ({"categories": ["sex"]}, "is not of the form"),
    ({"categories": ["sex = f"]}, "is not of the form"),
    ({"categories": ["= f | m"]}, "is not of the form"),
    ({"categories": ["sex = f | | m"]}, "is not of the form"),
    ({"categories": ["sex = f | f"]}, "twice"),
    ({"categories": ["sex = f | m", "sex = a | b"]}, "twice"),
    ({"categories": ["x = " + "|".join(map(str, range(5000)))]}, "at most 4096"),
    ({"cut": 0.0}, "above 0"),
    ({"hidden": 0}, "greater than or equal to 1"),
    ({}, r"needs table\.columns or table\.categories"),
]


@pytest.mark.parametrize(("table", "says"), BAD)
def test_a_table_that_makes_no_sense_is_refused_with_the_plan(
    table: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        RunPlan().replace(task={"kind": "text-table-classification"}, table=table)


def test_a_table_is_refused_by_tasks_that_read_none() -> None:
    table = {"columns": ["a"], "centers": [0.0], "scales": [1.0]}
    with pytest.raises(ValueError, match=r'task\.kind one of "text-table'):
        RunPlan().replace(table=table)


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, small_backbone: Path, tmp_path: Path) -> Any:
    """``made(**sections)``: plan, task, backbone, records of both tasks in turn."""
    kind = request.param

    def make(**sections: Any) -> tuple[RunPlan, Any, Any, Records]:
        data = write_data(tmp_path, kind, rows_of(kind, 8))
        plan = plan_of(kind, write_backbone(tmp_path / "images", kind, small_backbone), data)
        plan = plan.replace(**({"data": {"test": str(data)}} | sections))
        return plan, task_of(plan), load_backbone(plan.backbone), load_data(plan).train

    return make


def model_of(task: Any, backbone: Any) -> Any:
    """A model with random values everywhere, so that no gradient is 0."""
    model = task.model(backbone).eval()
    generator = torch.Generator().manual_seed(2)
    state = {
        name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in task.start(backbone).items()
    }
    model.load_state(state)
    return model


@pytest.mark.parametrize("adapter", ["lora", "head", "bitfit"])
def test_gradients_per_record_are_those_of_plain_autograd(made: Any, adapter: str) -> None:
    """Every parameter of the adapter, record by record, to 1e-5 of the largest entry."""
    method = {"method": "fedavg"}
    _plan, task, backbone, records = made(adapter={"kind": adapter}, aggregation=method)
    inputs = task.encode(backbone, records)
    targets, rows = task.targets(records, inputs), np.arange(len(records))
    plain, counted = model_of(task, backbone), model_of(task, backbone)
    trained = {n: p for n, p in counted.adapter_parameters.items() if n != "head.center"}
    assert {n for n in trained if n.startswith("head.")} == {
        *("head.weight", "head.bias", "head.table.weight", "head.outer.weight"),
        *("head.inner.weight", "head.inner.bias"),
    }
    enable_per_sample_gradients(counted, trained.values())
    outputs = counted.outputs(
        counted.features(counted.pooled_of_ids(*inputs.collate(rows))), inputs, rows
    )
    task.loss_sum(outputs, targets, rows).backward()
    wanted = plain.adapter_parameters
    for name in trained:
        wanted[name].requires_grad_(True)
    for row in rows:
        one = np.array([row])
        features = plain.features(plain.pooled_of_ids(*inputs.collate(one)))
        loss = task.loss_sum(plain.outputs(features, inputs, one), targets, one)
        found = torch.autograd.grad(loss, [wanted[name] for name in trained], allow_unused=True)
        for name, expected in zip(trained, found, strict=True):
            got = trained[name].grad_sample[row]
            expected = torch.zeros_like(got) if expected is None else expected
            scale = max(float(expected.abs().max()), 1e-6)
            assert float((got - expected).abs().max()) <= 1e-5 * max(scale, 1.0), name


def test_the_views_of_an_image_keep_its_table(small_backbone: Path, tmp_path: Path) -> None:
    """Two rows with one image: their outputs differ by their tables, view by view."""
    kind = KINDS[1]
    data = write_data(tmp_path, kind, rows_of(kind, 6))
    plan = plan_of(kind, write_backbone(tmp_path / "i", kind, small_backbone), data)
    plan = plan.replace(training={"augmentations": 2})
    task, backbone = task_of(plan), load_backbone(plan.backbone)
    first = load_data(plan).train.take([0, 0])
    cells = {"age": ["20", "90"], "ward": ["er", "er"]}
    inputs = task.encode(backbone, replace(first, table=Table.of(cells, "here")))
    model = model_of(task, backbone)

    def outputs(rows: list[int]) -> torch.Tensor:
        views = np.zeros(len(rows), dtype=np.int64)
        with torch.no_grad():
            return task.outputs_of_views(model, inputs, np.array(rows), views, ViewNumbers(b"3"))

    assert not torch.allclose(outputs([0, 0]), outputs([1, 1]))
    torch.testing.assert_close(outputs([0, 0])[0], outputs([0, 1])[0])


def test_records_with_the_same_texts_and_another_table_share_no_cache(made: Any) -> None:
    _plan, task, backbone, records = made()
    shelf, model = CacheShelf(), model_of(task, backbone)
    cells = {name: [""] * len(records) for name in records.table.names}
    other = replace(records, table=Table.of(cells, "here"))
    inputs, others = task.encode(backbone, records), task.encode(backbone, other)
    assert inputs.digest() != others.digest()
    rows = np.arange(len(records))
    with torch.no_grad():
        found = shelf.get(model, inputs, backbone=backbone).outputs(model, rows)
        differs = shelf.get(model, others, backbone=backbone).outputs(model, rows)
        expected = PrefixCache(model, others).outputs(model, rows)
    assert not torch.allclose(found, differs)
    torch.testing.assert_close(differs, expected)


def test_the_head_tells_what_neither_part_tells_alone() -> None:
    """The label is whether feature and table agree: no sum of the two tells it, so a linear map of
    both stays at a coin's toss and the hidden layer does not."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (400, 2), generator=generator) * 2.0 - 1
    features = torch.nn.functional.normalize(
        torch.cat([signs[:, :1], 0.5 * torch.randn(400, 7, generator=generator)], 1), dim=1
    )
    table, labels = signs[:, 1:], (signs[:, 0] == signs[:, 1]).long()

    def accuracy(outputs: Callable[[], torch.Tensor], parameters: Any) -> float:
        optimizer = torch.optim.Adam(parameters, lr=0.1)
        for _ in range(150):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(outputs(), labels).backward()
            optimizer.step()
        return float((outputs().argmax(1) == labels).float().mean())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        head, linear = FusionHead(8, 1, 16, 2), torch.nn.Linear(9, 2)
    assert accuracy(lambda: linear(torch.cat([features, table], 1)), linear.parameters()) < 0.65
    assert accuracy(lambda: head(features, table), head.parameters()) > 0.95


def test_a_record_without_the_columns_is_refused_for_training_and_not_for_use(
    made: Any, refuses: Refuses
) -> None:
    plan, task, backbone, records = made()
    bare = replace(records, table=None)
    assert "'age'" in refuses(Code.DATA_COLUMN, lambda: task.check(bare, where="The data"))
    values = task.encode_for_use(backbone, bare).table
    missing = {name: [""] * len(records) for name in plan.table.names}
    assert values.equal(table_values(plan.table, replace(bare, table=Table.of(missing, "")), ""))


@pytest.fixture
def adapter(made: Any, tmp_path: Path) -> tuple[Path, RunPlan]:
    plan, task, backbone, _ = made()
    state = model_of(task, backbone).adapter_state()
    save_adapter(tmp_path / "adapter", state, plan, backbone)
    return tmp_path / "adapter", plan


def given_to(plan: RunPlan, folder: Path) -> list[str]:
    """Two texts, or two images' file names."""
    if "image" not in plan.task.kind:
        return ["my card is lost", "fever"]
    return [str(folder / "image-table-classification" / f"{number}.png") for number in (0, 1)]


def test_the_predictor_reads_the_table(
    adapter: tuple[Path, RunPlan], tmp_path: Path, refuses: Refuses
) -> None:
    folder, plan = adapter
    predictor, texts = Predictor(folder), given_to(plan, tmp_path)
    assert predictor.columns == ["age", "ward"]
    old, young = (predictor(texts, {"age": [age, age], "ward": ["er", ""]}) for age in ("90", "20"))
    assert old != young
    assert predictor(texts) == predictor(texts, {"age": ["", ""]})
    assert predictor(texts[:1], {"age": ["90"], "ward": ["er"]})[0].probabilities == pytest.approx(
        old[0].probabilities, abs=1e-5
    )
    said = refuses(Code.DATA_COLUMN, lambda: predictor(texts, {"height": ["1", "2"]}))
    assert "'height'" in said and "age, ward" in said
    refuses(Code.DATA_VALUE, lambda: predictor(texts, {"age": ["old", "90"]}))
    refuses(Code.DATA_VALUE, lambda: predictor(texts, {"ward": ["icu", "er"]}))
    about = json.loads((folder / "lorica.json").read_text(encoding="utf-8"))["table"]
    assert about["columns"] == [{"name": "age", "center": 50.0, "scale": 20.0}]
    assert about["categories"] == [{"name": "ward", "values": ["er", "day"]}]


def test_lorica_predict_takes_values_and_tables(
    adapter: tuple[Path, RunPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By arguments and by a file, the same answers as the predictor's."""
    folder, plan = adapter
    texts = given_to(plan, tmp_path)
    expected = Predictor(folder)(texts, {"age": ["70", "70"], "ward": ["er", "er"]})

    def predicted(*arguments: str) -> list[dict[str, Any]]:
        result = CliRunner().invoke(app, ["predict", "--adapter", str(folder), *arguments])
        if result.exception is not None:
            raise result.exception
        return [json.loads(line) for line in result.stdout.splitlines()]

    rows = predicted(*texts, "--value", "age=70", "--value", "ward = er")
    assert [row["predicted_label"] for row in rows] == [answer.label for answer in expected]
    assert rows[0]["age"] == "70" and rows[0]["text"] == texts[0]
    images = "image" in plan.task.kind
    home = Path(texts[0]).parent if images else tmp_path
    names = [Path(text).name for text in texts] if images else texts
    table = home / "given.jsonl"
    content = [{"text": name, "age": 70, "ward": "er"} for name in names]
    table.write_text("".join(json.dumps(row) + "\n" for row in content))
    again = predicted("--file", str(table))
    assert [row["probabilities"] for row in again] == [row["probabilities"] for row in rows]
    table.write_text("".join(json.dumps({"text": n, "age": 70}) + "\n" for n in names))
    with pytest.raises(LoricaError) as caught:
        predicted("--file", str(table))
    assert caught.value.code is Code.DATA_COLUMN and "'ward'" in caught.value.detail
    with pytest.raises(SystemExit):
        predicted("--file", str(table), "--value", "age=70")
    with pytest.raises(SystemExit):
        predicted(*texts, "--value", "age")


def test_the_model_card_says_how_to_give_values(adapter: tuple[Path, RunPlan]) -> None:
    card = (adapter[0] / "README.md").read_text(encoding="utf-8")
    assert "--value age=50 --value ward=er" in card
    assert "2 columns of a table" in card
