"""What holds for every task: targets are checked, gradients and counts are what they say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, mean_absolute_error, mean_squared_error, r2_score

from lorica.common.backbone.loading import load_backbone
from lorica.common.cache.prefix import PrefixCache, judgements
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.io import from_canonical
from lorica.common.plan.traits import TASK_KINDS, TRAITS
from lorica.common.saved.folder import save_adapter
from lorica.common.saved.predict import Predictor
from lorica.common.tasks import task_of
from lorica.common.tasks.base import Task, TensorTargets
from lorica.common.tasks.noised_metrics import combine, sensitivity, vector_length
from lorica.common.tasks.run_data import load_data
from lorica.common.tasks.tokens.task import TagTargets
from tests.tasks import (
    KINDS,
    SECTIONS,
    example,
    plan_of,
    rows_of,
    write_backbone,
    write_data,
    write_rows,
)


@pytest.fixture
def made(small_backbone: Path, tmp_path: Path) -> Any:
    """``made(kind, **sections)``: plan, task, records, inputs and targets."""

    def make(kind: str, **sections: Any) -> tuple[RunPlan, Task, Any, Any, Any]:
        data = write_data(tmp_path, kind, rows_of(kind, 20))
        backbone = write_backbone(tmp_path / "images", kind, small_backbone)
        plan = plan_of(kind, backbone, data, **sections)
        task, records = task_of(plan), load_data(plan).train
        task.check(records, where="The data")
        inputs = task.encode(load_backbone(plan.backbone), records)
        return plan, task, records, inputs, task.targets(records, inputs)

    return make


def test_every_task_that_a_plan_can_name_is_tried_here() -> None:
    elsewhere = {"image-classification", "causal-lm", "masked-lm"}  # these have files of their own
    assert set(KINDS) | elsewhere == set(TASK_KINDS) == set(TRAITS)


@pytest.mark.parametrize("kind", KINDS)
def test_no_records_give_inputs_of_the_same_kind(made: Any, kind: str) -> None:
    """A site tries its machine on them before it reads any record."""
    plan, task, records, inputs, _ = made(kind)
    none = task.encode(load_backbone(plan.backbone), records.take([]))
    assert (type(none), none.limit, len(none)) == (type(inputs), inputs.limit, 0)
    for own, other in zip(_tensors(none), _tensors(inputs), strict=True):
        assert (own.shape[1:], own.dtype) == (other.shape[1:], other.dtype)


def _tensors(inputs: Any) -> list[torch.Tensor]:
    """What inputs hold of records as one tensor, those of their parts among them."""
    found = []
    for value in vars(inputs).values():
        if isinstance(value, torch.Tensor) and value.dim() > 1:
            found.append(value)
        elif hasattr(value, "limit"):
            found += _tensors(value)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_survives_its_canonical_form(kind: str) -> None:
    plan = plan_of(kind, Path("x"))
    assert from_canonical(plan.canonical()) == plan


BAD: list[tuple[str, dict[str, Any], Code, str]] = [
    ("text-classification", {"label": "weather"}, Code.DATA_UNKNOWN_LABEL, "'weather'"),
    ("multi-label-classification", {"label": ["weather"]}, Code.DATA_UNKNOWN_LABEL, "record 1"),
    ("multi-label-classification", {"label": "money|"}, Code.DATA_TARGET, "is empty"),
    ("multi-label-classification", {"label": "money|money"}, Code.DATA_TARGET, "twice"),
    ("multi-label-classification", {"label": [1]}, Code.DATA_TARGET, "no list of label names"),
    ("multi-label-classification", {"label": "[money"}, Code.DATA_TARGET, "are no JSON"),
    ("text-table-classification", {"label": "old x"}, Code.DATA_UNKNOWN_LABEL, "'old x'"),
    ("text-table-classification", {"age": "NaN"}, Code.DATA_VALUE, "'NaN', which is no number"),
    ("text-table-classification", {"age": "-inf"}, Code.DATA_VALUE, "which is no number"),
    ("text-table-classification", {"age": "1e999"}, Code.DATA_VALUE, "beyond every number"),
    ("text-table-classification", {"age": "12,5"}, Code.DATA_VALUE, "column 'age'"),
    ("text-table-classification", {"age": "1_000"}, Code.DATA_VALUE, "record 1"),
    ("text-table-classification", {"ward": "icu"}, Code.DATA_VALUE, "lists 'er', 'day'"),
    ("text-regression", {"label": "NaN"}, Code.DATA_TARGET, "is not finite"),
    ("text-regression", {"label": "inf"}, Code.DATA_TARGET, "is not finite"),
    ("text-regression", {"label": "much"}, Code.DATA_TARGET, "is no number"),
    ("text-regression", {"label": "1_0"}, Code.DATA_TARGET, "is no number as files write them"),
    ("text-regression", {"label": "\u0661"}, Code.DATA_TARGET, "is no number as files write them"),
    ("text-regression", {"label": "0,5"}, Code.DATA_TARGET, "a decimal mark is a point"),
    ("text-regression", {"label": 9.99}, Code.DATA_TARGET, "outside task.minimum to task.maximum"),
    ("text-regression", {"label": 41}, Code.DATA_TARGET, "10 to 40"),
    ("token-classification", {"text": ["a"], "label": ["B-x"]}, Code.DATA_UNKNOWN_LABEL, "'x'"),
    ("token-classification", {"text": ["a"], "label": ["I-place"]}, Code.DATA_TARGET, "begins"),
    ("token-classification", {"text": ["a"], "label": ["O", "O"]}, Code.DATA_TARGET, "1 tokens"),
]


@pytest.mark.parametrize(("kind", "change", "code", "says"), BAD)
def test_a_target_that_is_none_is_refused_with_record_and_reason(
    tmp_path: Path, kind: str, change: dict[str, Any], code: Code, says: str
) -> None:
    rows = rows_of(kind, 20)
    data = write_rows(tmp_path / "bad.jsonl", [rows[0] | change, *rows[1:]])
    plan = plan_of(kind, Path("x"), data).replace(data={"test": str(data)})
    with pytest.raises(LoricaError) as caught:
        task_of(plan).check(load_data(plan).train, where="Site a")
    assert caught.value.code is code
    assert says in caught.value.detail and caught.value.detail.startswith("Site a")
    assert says not in caught.value.public_reason


@pytest.mark.parametrize("kind", ["text-classification", "text-regression"])
def test_lists_are_refused_by_tasks_that_have_none(tmp_path: Path, kind: str) -> None:
    data = write_rows(tmp_path / "lists.jsonl", [{"text": "a", "label": ["x"]}])
    with pytest.raises(LoricaError) as caught:
        load_data(plan_of(kind, Path("x"), data))
    assert caught.value.code is Code.DATA_MALFORMED


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_found_in_the_data_of_tasks_that_have_any(made: Any, kind: str) -> None:
    plan, _, records, _, _ = made(kind)
    bare = plan.replace(task={"labels": []})
    found = task_of(bare).with_labels([records])
    assert sorted(found.task.labels) == sorted(plan.task.labels)


def test_a_plan_is_refused_that_asks_of_a_task_what_it_has_not() -> None:
    for sections, says in (
        ({"task": {"kind": "text-regression", "labels": ["a", "b"]}}, "has no labels"),
        ({"task": {"kind": "text-regression", "minimum": 2.0, "maximum": 2.0}}, "must be below"),
        ({"task": {"kind": "text-regression"}, "rounds": {"evaluate_every": 1}}, '"accuracy"'),
        ({"task": {"kind": "x"}}, "token-classification"),
    ):
        with pytest.raises(ValueError, match=says):
            RunPlan().replace(**sections)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_one_per_record_and_padding_changes_none(made: Any, kind: str) -> None:
    """A batch of ragged records against each alone."""
    plan, task, _, inputs, targets = made(kind)
    backbone = load_backbone(plan.backbone)
    model = task.model(backbone).eval()
    model.load_state(task.start(backbone))
    cache, rows = PrefixCache(model, inputs), np.arange(len(inputs))
    batch = task.losses(cache.outputs(model, rows), targets, rows)
    assert batch.shape == (len(inputs),)
    for row in rows:
        one = np.array([row])
        alone = task.losses(cache.outputs(model, one), targets, one)
        torch.testing.assert_close(alone[0], batch[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(task.loss_sum(cache.outputs(model, one), targets, one), alone[0])


CLOSED = [kind for kind in KINDS if kind != "token-classification" and not TRAITS[kind].table]


@pytest.mark.parametrize("kind", CLOSED)
def test_residuals_are_the_derivative_of_the_loss(made: Any, kind: str) -> None:
    """Against plain autograd."""
    _, task, _, inputs, targets = made(kind)
    assert task.closed_head
    width = 1 if kind == "text-regression" else 2
    generator = torch.Generator().manual_seed(3)
    outputs = torch.randn(len(inputs), width, generator=generator, dtype=torch.float64)
    outputs.requires_grad_()
    rows = np.arange(len(inputs))
    (expected,) = torch.autograd.grad(task.losses(outputs, targets, rows).sum(), outputs)
    torch.testing.assert_close(task.residuals(outputs.detach(), targets, rows), expected)


def outputs_for(kind: str, count: int, generator: torch.Generator, size: float) -> torch.Tensor:
    shape = {"text-regression": (count, 1), "token-classification": (count, 9, 5)}
    usual = count, len(SECTIONS[kind].get("labels", []))
    return size * torch.randn(shape.get(kind, usual), generator=generator)


def targets_for(kind: str, count: int) -> Any:
    generator = np.random.default_rng(1)
    if kind == "token-classification":
        tags = [generator.integers(0, 5, 9) for _ in range(count)]
        hidden = [int(number) for number in generator.integers(0, 30, count)]
        return TagTargets(tags, hidden, [np.zeros(len(own), dtype=bool) for own in tags])
    if kind == "text-regression":
        return TensorTargets(torch.from_numpy(generator.uniform(-1, 1, count)).float())
    if kind.endswith(("text-classification", "table-classification")):
        labels = len(SECTIONS[kind]["labels"])
        return TensorTargets(torch.from_numpy(generator.integers(0, labels, count)))
    return TensorTargets(torch.from_numpy(generator.integers(0, 2, (count, 2))).float())


def every_metric(kind: str) -> RunPlan:
    return plan_of(
        kind,
        Path("x"),
        privacy={"epsilon": math.inf, "evaluation_metrics": list(TRAITS[kind].site_metrics)},
        rounds={"evaluate_every": 1},
    )


@pytest.mark.parametrize("size", [0.1, 1.0, 1e3, 1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_no_record_contributes_more_than_the_sensitivity(kind: str, size: float) -> None:
    """Records with outputs of any size, infinite and not a number, part by part."""
    plan, count = every_metric(kind), 64
    task, targets = task_of(plan), targets_for(kind, count)
    outputs = outputs_for(kind, count, torch.Generator().manual_seed(5), size)
    outputs[0], outputs[1], outputs[2] = torch.nan, torch.inf, -torch.inf
    values = task.contributions(task.judge(outputs, targets, np.arange(count)))
    assert values.shape == (count, vector_length(plan) - 1)
    assert values.dtype == torch.float64 and bool(values.isfinite().all())
    parts = values.split([part.width for part in task.released()], dim=1)
    for part, found in zip(task.released(), parts, strict=True):
        assert float(found.norm(dim=1).max()) <= part.norm * (1 + 1e-12), part.name
    whole = torch.cat([torch.ones(count, 1, dtype=torch.float64), values], dim=1)
    assert float(whole.norm(dim=1).max()) <= sensitivity(plan) * (1 + 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_counts_give_the_metrics_of_the_coordinator(kind: str) -> None:
    """Where no bound cuts: against the metrics of the whole table."""
    plan, count = every_metric(kind), 60
    task, targets = task_of(plan), targets_for(kind, count)
    if isinstance(targets, TagTargets):
        tags = [own[:5] for own in targets.tags]
        targets = TagTargets(tags, [0] * count, [own[:5] for own in targets.continues])
    outputs = outputs_for(kind, count, torch.Generator().manual_seed(6), 0.3)
    outputs = outputs[:, :5] if kind == "token-classification" else outputs
    table = task.judge(outputs, targets, np.arange(count))
    values = torch.cat(
        [torch.ones(count, 1, dtype=torch.float64), task.contributions(table)], dim=1
    )
    halves = [values[:25].sum(0).tolist(), values[25:].sum(0).tolist()]
    found, expected = combine(plan, halves), task.metrics(table).values
    assert found is not None and found.score is not None
    assert found.headline == task.headline == task.metrics(table).headline
    assert task.headline in expected
    for name, value in found.values.items():
        assert value == pytest.approx(expected[name], rel=1e-9), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_gives_the_headline_gives_it_alone_and_nothing_else_does(kind: str) -> None:
    for name in TRAITS[kind].site_metrics:
        changes = {"privacy": {"evaluation_metrics": [name]}, "training": {"lora": "never"}}
        plan = every_metric(kind).replace(**changes)
        found = combine(plan, [[100.0] * vector_length(plan)])
        assert found is not None
        assert (found.score is not None) is (name in TRAITS[kind].headline_from), name


def test_multi_label_metrics_equal_scikit_learn() -> None:
    plan = every_metric("multi-label-classification")
    task, targets = task_of(plan), targets_for(plan.task.kind, 50)
    outputs = outputs_for(plan.task.kind, 50, torch.Generator().manual_seed(7), 1.0)
    found = task.metrics(task.judge(outputs, targets, np.arange(50))).values
    true, given = targets.tensor.numpy(), (outputs > 0).numpy()
    assert found["micro_f1"] == pytest.approx(f1_score(true, given, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(true, given, average="macro"))
    assert found["accuracy"] == pytest.approx((true == given).all(1).mean())


def test_regression_metrics_equal_scikit_learn() -> None:
    plan = every_metric("text-regression")
    task, targets = task_of(plan), targets_for(plan.task.kind, 50)
    outputs = outputs_for(plan.task.kind, 50, torch.Generator().manual_seed(8), 0.5)
    found = task.metrics(task.judge(outputs, targets, np.arange(50))).values
    true = 25 + 15 * targets.tensor.double().numpy()  # the plan's bounds are 10 and 40
    given = 25 + 15 * outputs[:, 0].double().clamp(-1, 1).numpy()
    assert found["r2"] == pytest.approx(r2_score(true, given))
    assert found["mse"] == pytest.approx(mean_squared_error(true, given))
    assert found["mae"] == pytest.approx(mean_absolute_error(true, given))


@pytest.mark.parametrize("kind", KINDS)
def test_a_records_loss_and_judgement_depend_on_no_other_record_to_the_bit(
    made: Any, kind: str
) -> None:
    """Of any outputs, in every row of batches of any size. torch computes some functions (sigmoid,
    softplus) otherwise where a tensor's last values fill no vector register; one bit is enough for
    an adapter whose large factors make a whole gradient of it."""
    plan, task, _, inputs, targets = made(kind)
    model = task.model(load_backbone(plan.backbone))
    everything = np.arange(len(inputs))
    with torch.no_grad():
        pooled = model.pooled_of_ids(*inputs.collate(everything))
        shape = model.outputs(model.features(pooled), inputs, everything).shape
    given = 6 * torch.randn(shape, generator=torch.Generator().manual_seed(5))

    def of(rows: np.ndarray) -> list[torch.Tensor]:
        outputs = given[torch.from_numpy(rows)].requires_grad_(True)
        task.loss_sum(outputs, targets, rows).backward()
        found = [outputs.grad, task.judge(outputs.detach(), targets, rows)]
        if task.closed_head:
            found.append(task.residuals(outputs.detach().double(), targets, rows))
        return found

    alone = [of(np.array([row])) for row in everything]
    for count in (4, 8, 11, 16, 64):
        for first in range(0, len(inputs), 3):
            rows = (first + np.arange(count)) % len(inputs)
            for place, values in enumerate(of(rows)):
                for row, value in zip(rows, values, strict=True):
                    assert torch.equal(value, alone[row][place][0]), (place, count, row)


@pytest.mark.parametrize("kind", KINDS)
def test_no_record_at_all_has_judgements_of_the_right_width(made: Any, kind: str) -> None:
    plan, task, records, _, _ = made(kind)
    backbone = load_backbone(plan.backbone)
    nobody = records.take([])
    inputs = task.encode(backbone, nobody)
    model = task.model(backbone).eval()
    table = judgements(task, model, PrefixCache(model, inputs), task.targets(nobody, inputs))
    assert table.shape == (0, task.judgement_width)
    assert task.contributions(table).shape == (0, sum(part.width for part in task.released()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_readmes_code_runs_on_plain_transformers_and_peft(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Its outputs against those that the predictor reads."""
    plan, task, _, _, _ = made(kind)
    backbone = load_backbone(plan.backbone)
    model = task.model(backbone).eval()
    generator = torch.Generator().manual_seed(1)
    state = {
        name: 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in task.start(backbone).items()
    }
    folder = tmp_path / "adapter"
    save_adapter(folder, state, plan, backbone)
    text, records = example(kind, plan, folder)
    assert len(Predictor(folder)([text])) == 1
    monkeypatch.chdir(folder)
    code = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1]
    found: dict[str, Any] = {}
    exec(compile(code.split("```")[0], "README.md", "exec"), found)
    model.load_state(state)
    inputs = task.encode(backbone, records)
    with torch.no_grad():
        expected = PrefixCache(model, inputs).outputs(model, np.array([0]))
    if kind == "token-classification":  # of a shape that the record alone decides, padded
        expected = expected[:, : found["outputs"].shape[1]]
    torch.testing.assert_close(found["outputs"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_say_the_same_in_a_line_a_table_and_an_object(made: Any, kind: str) -> None:
    plan, task, _, inputs, _ = made(kind)
    backbone = load_backbone(plan.backbone)
    model = task.model(backbone).eval()
    model.load_state(task.start(backbone))
    rows = np.arange(3)
    with torch.no_grad():
        answers = task.predictions(PrefixCache(model, inputs).outputs(model, rows), inputs, rows)
    assert len(answers) == 3
    for answer in answers:
        assert answer.shown
        assert set(answer.columns()) <= set(answer.content()) and answer.columns()


def test_predicted_entities_are_stretches_of_the_text(made: Any) -> None:
    _, task, _, inputs, targets = made("token-classification")
    outputs = torch.full((len(inputs), int(inputs.lengths.max()), 5), 0.0)
    rows = np.arange(len(inputs))
    tags = targets.of(rows).clamp(min=0)
    outputs.scatter_(2, tags[..., None], 1.0)  # as if every tag were right
    for answer, text in zip(task.predictions(outputs, inputs, rows), inputs.texts, strict=True):
        for entity in answer.entities:
            assert text[entity.start : entity.end] == entity.text
            known = {"place": {"street", "bank"}, "symptom": None}[entity.label]
            assert known is None or entity.text.split()[-1] in known
    table = task.judge(outputs, targets, rows)
    assert task.metrics(table).values["entity_f1"] == 1.0
