"""The two halves of a split encoder equal the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from lorica.common.adapter.lora import attach_lora, lora_parameters, structural_copy
from lorica.common.backbone.loading import Backbone, load_backbone
from lorica.common.backbone.prefix import FrozenPrefix, windows_of
from lorica.common.plan.subject import AdapterPlan, BackbonePlan
from tests.families import TEXT, WINDOW, make_family

Family = Callable[..., Path]

IDS = torch.tensor([[2, 20, 21, 22, 23, 3], [2, 24, 25, 3, 0, 0], [2, 3, 0, 0, 0, 0]])
MASK = (IDS != 0).long()
FAMILIES = ["distilbert", "roberta", "electra", "mpnet", "albert", "xlm-roberta", "modernbert"]


def adapted_encoder(backbone: Backbone, depth: int, modules: list[str]) -> Any:
    """The backbone with random LoRA factors on the layers from ``depth`` on."""
    encoder = structural_copy(backbone.model)
    layers = list(range(depth, backbone.layers))
    if layers:
        peft_model = attach_lora(encoder, AdapterPlan(layers=layers, target_modules=modules))
        with torch.no_grad():
            for parameter in lora_parameters(peft_model).values():
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return encoder


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_prefix_and_rest_equal_the_whole_encoder_on_padded_texts(
    small_backbone: Path, depth: int
) -> None:
    backbone = load_backbone(BackbonePlan(source=str(small_backbone)))
    encoder = adapted_encoder(backbone, depth, ["query", "value"])
    split = FrozenPrefix(encoder, depth)
    assert split.depth == depth
    if depth == 0:
        return  # nothing below: the caller runs the encoder whole
    whole = encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
    hidden = split.hidden(IDS, MASK)
    assert hidden.shape == (3, 6, 32)
    together = split.finish(hidden, MASK)
    # reference: the undivided encoder
    torch.testing.assert_close(together[MASK.bool()], whole[MASK.bool()], rtol=0, atol=1e-5)


def test_gradients_of_the_rest_equal_those_of_the_whole_encoder(small_backbone: Path) -> None:
    backbone = load_backbone(BackbonePlan(source=str(small_backbone)))
    encoder = adapted_encoder(backbone, 1, ["query", "value"])
    split = FrozenPrefix(encoder, 1)
    trained = [p for p in encoder.parameters() if p.requires_grad]
    weights = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(2)) * MASK[..., None]
    whole = encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
    reference = torch.autograd.grad((whole * weights).sum(), trained)
    together = split.finish(split.hidden(IDS, MASK), MASK)
    found = torch.autograd.grad((together * weights).sum(), trained)
    assert len(trained) == 8
    for gradient, expected in zip(found, reference, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_the_prefix_has_no_gradients_and_does_not_see_the_adapter(small_backbone: Path) -> None:
    backbone = load_backbone(BackbonePlan(source=str(small_backbone)))
    encoder = adapted_encoder(backbone, 2, ["query"])
    split = FrozenPrefix(encoder, 2)
    before = split.hidden(IDS, MASK)
    assert not before.requires_grad
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1.0)
    assert torch.equal(split.hidden(IDS, MASK), before)


def test_what_is_trained_in_the_encoder_is_seen_by_the_rest(small_backbone: Path) -> None:
    backbone = load_backbone(BackbonePlan(source=str(small_backbone)))
    encoder = adapted_encoder(backbone, 2, ["query", "value"])
    split = FrozenPrefix(encoder, 2)
    hidden = split.hidden(IDS, MASK)
    before = split.finish(hidden, MASK)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1)
    whole = encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
    after = split.finish(hidden, MASK)
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after[MASK.bool()], whole[MASK.bool()], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_split_exactly_or_not_at_all(other_family: Family, family: str) -> None:
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3} | (
        {"cls_token_id": 2, "sep_token_id": 3} if family == "modernbert" else {}
    )
    backbone = load_backbone(BackbonePlan(source=str(other_family(family, **special))))
    encoder = structural_copy(backbone.model)
    whole = encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
    for depth in (1, 2, 3):
        split = FrozenPrefix(encoder, depth)
        assert split.depth in (0, depth)
        if split.depth:
            together = split.finish(split.hidden(IDS, MASK), MASK)
            torch.testing.assert_close(together[MASK.bool()], whole[MASK.bool()], rtol=0, atol=1e-5)


def test_roberta_is_among_the_families_that_are_split(other_family: Family) -> None:
    backbone = load_backbone(BackbonePlan(source=str(other_family("roberta"))))
    assert FrozenPrefix(structural_copy(backbone.model), 2).depth == 2


@pytest.mark.parametrize("vocabulary", [1, 5, 11])
def test_a_tiny_vocabulary_is_no_error(other_family: Family, vocabulary: int) -> None:
    model = AutoModel.from_pretrained(other_family("bert", vocab_size=vocabulary)).eval()
    assert FrozenPrefix(model, 1).depth == 1


WINDOWED = [
    *["qwen2", "qwen3", "gemma2", "gemma3", "cohere2", "olmo3", "gpt-oss", "modernbert"],
    *["mistral", "phi3", "gpt-neo"],
]
"""Families that choose window, RoPE or kind of attention by a layer's number."""


@pytest.mark.parametrize("family", WINDOWED)
def test_every_layer_keeps_its_window_on_texts_longer_than_it(tmp_path: Path, family: str) -> None:
    backbone = load_backbone(BackbonePlan(source=str(make_family(tmp_path / family, family))))
    assert windows_of(backbone.model.config) == [WINDOW]
    ids = torch.randint(6, 39, (3, 4 * WINDOW), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 2 * WINDOW + 1 :] = 0
    for depth in (1, 2, 3):
        encoder = adapted_encoder(backbone, depth, TEXT[family][2])
        split = FrozenPrefix(encoder, depth, limit=backbone.max_length)
        assert split.depth == depth
        with torch.no_grad():
            whole = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            together = split.finish(split.hidden(ids, mask), mask)
        # reference: the undivided encoder, whose layers have their own places
        torch.testing.assert_close(together[mask.bool()], whole[mask.bool()], rtol=0, atol=1e-5)
    if family in WINDOWED[:7]:
        config = backbone.model.config
        states = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
        config.layer_types = config.layer_types[::-1]
        turned = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
        assert not torch.allclose(states, turned, atol=1e-2)  # the windows matter here


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        ({"attention_window": [4, 8, 8]}, [4, 8]),
        ({"sliding_window": None, "max_window_layers": 28}, []),
        ({"local_attention": 128, "window_attention": True}, [128]),
    ],
)
def test_windows_are_read_from_the_config(config: dict[str, Any], windows: list[int]) -> None:
    from transformers import PretrainedConfig

    assert windows_of(PretrainedConfig(**config)) == windows


class OtherBeyond(torch.nn.Module):
    """An encoder that changes, from ids, what is longer than its window."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config, self.encoder = model.config, model.encoder
        self.config.sliding_window = 10
        self.inner = [model]

    def get_input_embeddings(self) -> Any:
        return self.inner[0].get_input_embeddings()

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        # the list of layers may have been exchanged in a copy
        self.inner[0].encoder = self.encoder
        output = self.inner[0](input_ids=input_ids, attention_mask=attention_mask)
        if input_ids.shape[1] > 10:
            output.last_hidden_state = output.last_hidden_state + input_ids[..., None]
        return output


def test_the_halves_are_compared_beyond_the_window_if_a_text_can_be_longer(
    small_backbone: Path,
) -> None:
    backbone = load_backbone(BackbonePlan(source=str(small_backbone)))
    for limit, depth in ((10, 1), (11, 0), (60, 0)):
        encoder = OtherBeyond(structural_copy(backbone.model))
        assert FrozenPrefix(encoder, 1, limit=limit).depth == depth


class Unusual(torch.nn.Module):
    """An encoder whose layers see the token ids: no split can be exact."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config, self.embeddings, self.encoder = model.config, model.embeddings, model.encoder
        self.inner = [model]  # hidden from the module tree

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **rest: Any) -> Any:
        output = self.inner[0](input_ids=input_ids, inputs_embeds=inputs_embeds, **rest)
        if input_ids is not None:
            output.last_hidden_state = output.last_hidden_state + input_ids[..., None]
        return output


def test_an_encoder_that_cannot_be_split_exactly_is_not_split(small_backbone: Path) -> None:
    backbone = load_backbone(BackbonePlan(source=str(small_backbone)))
    assert FrozenPrefix(Unusual(structural_copy(backbone.model)), 1).depth == 0
