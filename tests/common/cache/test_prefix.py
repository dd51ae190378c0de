"""Cached states and features give the logits of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorica.common.backbone.loading import Backbone, load_backbone
from lorica.common.cache.prefix import PrefixCache, predict_logits
from lorica.common.cache.shelf import CacheShelf
from lorica.common.plan import RunPlan
from lorica.common.tasks.inputs import Encoded, collate, encode
from lorica.common.tasks.text_classification import TextClassifier

Family = Callable[..., Path]

WORDS = ["my", "card", "is", "lost", "again", "the", "doctor", "was", "very", "tired", "today"]
TEXTS = [" ".join(WORDS[i % 4 : i % 4 + 1 + (5 * i) % 8]) for i in range(40)]


def made(folder: Path, **adapter: Any) -> tuple[Backbone, TextClassifier, Encoded]:
    """A classifier with a random adapter, and texts of many lengths."""
    plan = RunPlan().replace(
        backbone={"source": str(folder)}, task={"labels": ["a", "b", "c"]}, adapter=adapter
    )
    backbone = load_backbone(plan.backbone)
    classifier = TextClassifier(backbone, plan).eval()
    generator = torch.Generator().manual_seed(0)
    classifier.load_state(
        {
            name: 0.3 * torch.randn(parameter.shape, generator=generator)
            for name, parameter in classifier.adapter_parameters.items()
        }
    )
    return backbone, classifier, encode(backbone, TEXTS, 64)


def one_by_one(classifier: TextClassifier, encoded: Encoded) -> torch.Tensor:
    """Reference: every text alone through the whole model."""
    with torch.no_grad():
        rows = [
            classifier.head(classifier.features_of_ids(*collate(encoded, [row])))
            for row in range(len(encoded))
        ]
    return torch.cat(rows)


@pytest.mark.parametrize(
    "adapter",
    [{"layers": [-1]}, {"layers": [1]}, {"layers": [0]}, {"layers": []}, {"kind": "head"}],
    ids=str,
)
@pytest.mark.parametrize("limit_bytes", [0, 100, 2**30])
def test_logits_are_the_same_cached_or_not(
    small_backbone: Path, adapter: dict[str, Any], limit_bytes: int
) -> None:
    _, classifier, encoded = made(small_backbone, **adapter)
    cache = PrefixCache(classifier, encoded, limit_bytes=limit_bytes)
    found = predict_logits(classifier, cache)
    torch.testing.assert_close(found, one_by_one(classifier, encoded), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layers", [[0], [-1]])
def test_a_records_values_are_the_same_to_the_bit_whatever_others_there_are(
    layers: list[int],
) -> None:
    plan = RunPlan().replace(task={"labels": ["a", "b"]}, adapter={"layers": layers})
    backbone = load_backbone(plan.backbone)
    classifier = TextClassifier(backbone, plan).eval()
    encoded = encode(backbone, [" ".join(WORDS * 3)[: 7 * n] for n in range(1, 24)], 64)
    rows = np.arange(len(encoded))
    whole = PrefixCache(classifier, encoded)
    for part in (rows[::2], rows[1::2], rows[5:9], rows[20:]):
        own = PrefixCache(
            classifier, Encoded([encoded.tokens[row] for row in part], limit=encoded.limit)
        )
        with torch.no_grad():
            found = own.features(classifier, np.arange(len(part)))
            assert torch.equal(found, whole.features(classifier, part))
        if own._states is not None:
            assert whole._states is not None
            spans = [whole._states[whole._starts[row] : whole._starts[row + 1]] for row in part]
            assert torch.equal(own._states, torch.cat(spans))


@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra"])
def test_other_families_give_the_same_logits_cached_or_not(
    other_family: Family, family: str
) -> None:
    modules = ["q_lin"] if family == "distilbert" else ["query"]
    _, classifier, encoded = made(other_family(family), target_modules=modules, layers=[-1])
    found = predict_logits(classifier, PrefixCache(classifier, encoded))
    torch.testing.assert_close(found, one_by_one(classifier, encoded), rtol=0, atol=1e-5)


def asked(cache: PrefixCache, classifier: TextClassifier) -> PrefixCache:
    """The cache after features were asked for; those of a frozen encoder are made then."""
    predict_logits(classifier, cache)
    return cache


def test_states_are_kept_without_padding_and_features_once_per_text(small_backbone: Path) -> None:
    _, lora, encoded = made(small_backbone, layers=[-1])
    assert PrefixCache(lora, encoded).size_bytes == 4 * 32 * encoded.lengths.sum()
    _, head, encoded = made(small_backbone, kind="head")
    assert asked(PrefixCache(head, encoded), head).size_bytes == 4 * 32 * len(encoded)
    _, whole, encoded = made(small_backbone, layers=[0])
    assert PrefixCache(whole, encoded).size_bytes == 0  # nothing below is frozen


def test_the_limit_is_kept_to_the_byte(small_backbone: Path) -> None:
    for adapter in ({"layers": [-1]}, {"kind": "head"}):
        _, classifier, encoded = made(small_backbone, **adapter)
        needed = asked(PrefixCache(classifier, encoded), classifier).size_bytes
        # room for the pooled states is asked for beside token states
        room = needed if adapter.get("kind") else needed + 4 * 32 * len(encoded)
        for limit, held in ((room, needed), (room - 1, 0)):
            cache = asked(PrefixCache(classifier, encoded, limit_bytes=limit), classifier)
            assert cache.size_bytes == held


def counted_calls(module: torch.nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(("adapter", "layer"), [({"layers": [-1]}, 0), ({"kind": "head"}, 2)])
def test_the_frozen_part_does_not_run_again(
    small_backbone: Path, adapter: dict[str, Any], layer: int
) -> None:
    _, classifier, encoded = made(small_backbone, **adapter)
    calls = counted_calls(classifier.encoder.encoder.layer[layer])
    cache = asked(PrefixCache(classifier, encoded), classifier)
    assert calls
    calls.clear()
    predict_logits(classifier, cache)
    assert not calls
    predict_logits(classifier, PrefixCache(classifier, encoded, limit_bytes=0))
    assert calls


def test_features_of_chosen_rows_come_in_their_order_and_carry_gradients(
    small_backbone: Path,
) -> None:
    _, classifier, encoded = made(small_backbone, layers=[-1])
    rows = np.array([7, 3, 7])
    features = PrefixCache(classifier, encoded).features(classifier, rows)
    uncached = PrefixCache(classifier, encoded, limit_bytes=0).features(classifier, rows)
    torch.testing.assert_close(features, uncached, rtol=0, atol=1e-5)
    trained = [p for n, p in classifier.adapter_parameters.items() if "lora" in n]
    weights = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((features * weights).sum(), trained)
    reference = torch.autograd.grad((uncached * weights).sum(), trained)
    for gradient, expected in zip(found, reference, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_one_cache_serves_classifiers_with_other_adapter_values(small_backbone: Path) -> None:
    _, first, encoded = made(small_backbone, layers=[-1])
    _, second, _ = made(small_backbone, layers=[-1])
    second.load_state({name: -tensor for name, tensor in first.adapter_state().items()})
    cache = PrefixCache(first, encoded)
    torch.testing.assert_close(
        predict_logits(second, cache), one_by_one(second, encoded), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("adapter", [{"layers": [-1]}, {"kind": "head"}], ids=str)
def test_no_texts_give_no_logits(small_backbone: Path, adapter: dict[str, Any]) -> None:
    _, classifier, _ = made(small_backbone, **adapter)
    assert predict_logits(classifier, PrefixCache(classifier, Encoded([]))).shape == (0, 3)


@pytest.mark.parametrize("adapter", [{"layers": [-1]}, {"kind": "head"}], ids=str)
def test_a_part_of_a_data_set_that_is_laid_out_is_computed_with_the_whole_alone(
    small_backbone: Path, adapter: dict[str, Any]
) -> None:
    """Sites' parts, in any order and with repeats, give what they give without a cache."""
    backbone, classifier, encoded = made(small_backbone, **adapter)
    shelf = CacheShelf()
    states = not classifier.frozen
    shelf.lay_out(classifier, encoded, backbone=backbone, states=states)
    predict_logits(classifier, shelf.get(classifier, encoded, backbone=backbone, states=states))
    calls = counted_calls(classifier.encoder.encoder.layer[0])
    for rows in ([7, 3, 3, 39, 0], list(range(40))):
        part = Encoded([encoded.tokens[row] for row in rows], limit=encoded.limit)
        found = predict_logits(
            classifier, shelf.get(classifier, part, backbone=backbone, states=states)
        )
        assert not calls
        torch.testing.assert_close(found, one_by_one(classifier, part), rtol=0, atol=1e-5)
        calls.clear()


def test_texts_beside_those_laid_out_get_a_cache_of_their_own(small_backbone: Path) -> None:
    backbone, classifier, encoded = made(small_backbone, layers=[-1])
    shelf = CacheShelf()
    shelf.lay_out(classifier, encoded, backbone=backbone, states=True)
    other = encode(backbone, [*TEXTS[:3], "the card of the doctor was lost again"], 64)
    found = shelf.get(classifier, other, backbone=backbone)
    assert found.size_bytes == 4 * 32 * other.lengths.sum()
    expected = one_by_one(classifier, other)
    torch.testing.assert_close(predict_logits(classifier, found), expected, rtol=0, atol=1e-5)


def test_what_was_laid_out_goes_when_the_shelf_is_full(small_backbone: Path) -> None:
    backbone, classifier, encoded = made(small_backbone, layers=[-1])
    shelf = CacheShelf(limit_bytes=4 * 32 * int(encoded.lengths.sum()) + 4 * 32 * 40)
    shelf.lay_out(classifier, encoded, backbone=backbone, states=True)
    shelf.get(classifier, encode(backbone, [3 * "the tired doctor "] * 9, 64), backbone=backbone)
    part = Encoded(encoded.tokens[:5], limit=encoded.limit)
    found = shelf.get(classifier, part, backbone=backbone)
    expected = one_by_one(classifier, part)
    torch.testing.assert_close(predict_logits(classifier, found), expected, rtol=0, atol=1e-5)
