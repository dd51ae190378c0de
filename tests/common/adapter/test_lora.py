"""LoRA factors on a shared backbone, and adapter states as blobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from lorica.common.adapter.lora import attach_lora, layer_indices, lora_parameters, structural_copy
from lorica.common.adapter.state import (
    check_shapes,
    pack_state,
    read_state,
    unpack_state,
    write_state,
)
from lorica.common.backbone.loading import Backbone, load_backbone
from lorica.common.errors import Code
from lorica.common.plan.subject import AdapterPlan, BackbonePlan

Refuses = Callable[[Code, Callable[[], object]], str]

IDS = torch.tensor([[2, 8, 9, 3]])


@pytest.fixture
def backbone(small_backbone: Path) -> Backbone:
    return load_backbone(BackbonePlan(source=str(small_backbone)))


def adapted(backbone: Backbone, **plan: Any) -> Any:
    return attach_lora(structural_copy(backbone.model), AdapterPlan(**plan))


def test_a_copy_shares_every_tensor_and_no_module(backbone: Backbone) -> None:
    copy = structural_copy(backbone.model)
    originals = dict(backbone.model.named_parameters()) | dict(backbone.model.named_buffers())
    copies = dict(copy.named_parameters()) | dict(copy.named_buffers())
    assert originals.keys() == copies.keys()
    assert all(copies[name] is tensor for name, tensor in originals.items())
    modules = {id(module) for module in backbone.model.modules()}
    assert not modules & {id(module) for module in copy.modules()}


def test_a_copy_has_the_very_modules_that_it_is_told_to_share(backbone: Backbone) -> None:
    layers = list(backbone.model.encoder.layer)
    copy = structural_copy(backbone.model, same=layers)
    assert all(a is b for a, b in zip(copy.encoder.layer, layers, strict=True))
    kept = {id(part) for layer in layers for part in layer.modules()}
    others = {id(part) for part in backbone.model.modules()} - kept
    assert others and not others & {id(part) for part in copy.modules()}


def test_adapting_a_copy_leaves_the_original_as_it_was(backbone: Backbone) -> None:
    before = backbone.model(IDS).last_hidden_state
    names = set(dict(backbone.model.named_modules()))
    encoder = adapted(backbone, layers=[])
    with torch.no_grad():
        for parameter in lora_parameters(encoder).values():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(encoder(IDS).last_hidden_state, before, atol=1e-2)
    assert torch.equal(backbone.model(IDS).last_hidden_state, before)
    assert set(dict(backbone.model.named_modules())) == names


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([], [0, 1, 2]),
        ([-1], [2]),
        ([-2, -1], [1, 2]),
        ([0], [0]),
        ([2, 0], [0, 2]),
        ([1, -2], [1]),
        ([-3, 2], [0, 2]),
    ],
)
def test_layers_count_from_both_ends(asked: list[int], expected: list[int]) -> None:
    assert layer_indices(AdapterPlan(layers=asked), 3) == expected


@pytest.mark.parametrize("layer", [3, -4, 100])
def test_a_layer_that_the_model_lacks_is_refused(
    backbone: Backbone, layer: int, refuses: Refuses
) -> None:
    detail = refuses(Code.BACKBONE_UNSUPPORTED, lambda: adapted(backbone, layers=[0, layer]))
    assert f"layer {layer}" in detail and "3 layers" in detail


@pytest.mark.parametrize("layers", [[], [-1], [0, 2]])
@pytest.mark.parametrize("modules", [["query"], ["query", "value"], ["dense"]])
def test_factors_sit_on_the_asked_modules_of_the_asked_layers_alone(
    backbone: Backbone, layers: list[int], modules: list[str]
) -> None:
    encoder = adapted(backbone, layers=layers, target_modules=modules, rank=4)
    expected = {
        f"{path}.lora_{factor}.weight"
        for path, module in backbone.model.named_modules()
        for factor in "AB"
        if isinstance(module, torch.nn.Linear)
        and path.rpartition(".")[2] in modules
        and any(f".layer.{index}." in path for index in {layer % 3 for layer in layers} or range(3))
    }
    found = lora_parameters(encoder)
    assert {name.removeprefix("base_model.model.") for name in found} == expected
    assert {p.shape[0] for n, p in found.items() if "lora_A" in n} == {4}
    trainable = {id(p) for p in encoder.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in found.values()}


def test_names_and_tensors_are_those_that_peft_saves(backbone: Backbone) -> None:
    encoder = adapted(backbone, layers=[1, 2])
    reference = peft.get_peft_model_state_dict(encoder)
    state = read_state(lora_parameters(encoder))
    assert state.keys() == reference.keys()
    assert all(torch.equal(state[name], reference[name]) for name in reference)


def test_an_adapted_module_computes_w_plus_alpha_over_rank_times_b_a(backbone: Backbone) -> None:
    encoder = adapted(backbone, rank=4, alpha=6.0, target_modules=["query"])
    with torch.no_grad():
        for parameter in lora_parameters(encoder).values():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    path = "base_model.model.encoder.layer.2.attention.self.query"
    module = encoder.get_submodule(path)
    state = read_state(lora_parameters(encoder))
    a, b = (state[f"{path}.lora_{factor}.weight"] for factor in "AB")
    original = backbone.model.get_submodule(path.removeprefix("base_model.model."))
    inputs = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    reference = original(inputs) + (6.0 / 4) * inputs @ (b @ a).T
    torch.testing.assert_close(module(inputs), reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["nonesuch", "LayerNorm", "word_embeddings", "Query"])
def test_a_module_that_is_no_linear_layer_is_refused_with_those_there_are(
    backbone: Backbone, name: str, refuses: Refuses
) -> None:
    detail = refuses(
        Code.BACKBONE_UNSUPPORTED, lambda: adapted(backbone, target_modules=["query", name])
    )
    assert repr(name) in detail and "dense, key, query, value" in detail


def test_a_state_written_is_the_state_read(backbone: Backbone) -> None:
    parameters = lora_parameters(adapted(backbone))
    state = {name: torch.randn(p.shape) for name, p in parameters.items()}
    write_state(parameters, state)
    read = read_state(parameters)
    assert all(torch.equal(read[name], state[name]) for name in state)
    next(iter(read.values())).zero_()  # a copy
    assert torch.equal(next(iter(read_state(parameters).values())), next(iter(state.values())))


def test_a_half_precision_state_is_written_as_its_float32_values(backbone: Backbone) -> None:
    parameters = lora_parameters(adapted(backbone))
    state = {name: torch.randn(p.shape).bfloat16() for name, p in parameters.items()}
    write_state(parameters, unpack_state(pack_state(state)))
    for name, tensor in read_state(parameters).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].float())


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64]


@settings(max_examples=50, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=4),
    dtype=st.sampled_from(DTYPES),
)
def test_any_state_survives_packing(shapes: list[list[int]], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {
        f"tensor {number} é": (100 * torch.randn(shape, generator=generator)).to(dtype)
        for number, shape in enumerate(shapes)
    }
    received = unpack_state(pack_state(state))
    assert received.keys() == state.keys()
    for name, tensor in state.items():
        assert received[name].dtype == dtype
        assert torch.equal(received[name], tensor)


def test_transposed_and_sliced_tensors_are_packed_as_they_look() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"transposed": base.T, "sliced": base[:, ::2]}
    received = unpack_state(pack_state(state))
    assert all(torch.equal(received[name], tensor) for name, tensor in state.items())


GOOD = save({"a": torch.ones(4, 4), "b": torch.zeros(3)})


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"junk",
        GOOD[:-1],
        GOOD[:20],
        GOOD + b"more",
        b"\xff" * 8 + GOOD[8:],
        GOOD.replace(b"F32", b"F99"),
        GOOD.replace(b"[4,4]", b"[5,4]"),
        (8).to_bytes(8, "little") + b"[" * 8,
    ],
    ids=["empty", "junk", "cut", "header cut", "longer", "huge header", "dtype", "shape", "json"],
)
def test_a_damaged_blob_is_refused(blob: bytes, refuses: Refuses) -> None:
    refuses(Code.MESSAGE_MALFORMED, lambda: unpack_state(blob))


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, len(GOOD) - 77), value=st.integers(0, 255))
def test_any_change_to_the_header_is_harmless_or_a_coded_error(
    refuses: Refuses, position: int, value: int
) -> None:
    blob = bytearray(GOOD)
    blob[position] = value
    try:
        unpack_state(bytes(blob))
    except Exception:  # noqa: BLE001 - the code is checked here
        refuses(Code.MESSAGE_MALFORMED, lambda: unpack_state(bytes(blob)))


SHAPES = {"a": torch.Size([2, 3]), "b": torch.Size([4])}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"a": torch.zeros(2, 3)}, "lacks the tensor b"),
        ({}, "lacks the tensor a"),
        (
            {"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(1)},
            "unexpected tensor c",
        ),
        ({"a": torch.zeros(3, 2), "b": torch.zeros(4)}, "(3, 2), the plan's (2, 3)"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(1)}, "(1,), the plan's (4,)"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(())}, "(), the plan's (4,)"),
    ],
)
def test_a_state_of_other_names_or_shapes_is_refused_and_nothing_is_written(
    state: dict[str, torch.Tensor], said: str, refuses: Refuses
) -> None:
    assert said in refuses(Code.ADAPTER_MISMATCH, lambda: check_shapes(state, SHAPES))
    parameters = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}
    refuses(Code.ADAPTER_MISMATCH, lambda: write_state(parameters, state))
    assert all((p == 1).all() for p in parameters.values())
