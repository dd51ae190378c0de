"""How sentence-transformers folders pool: as their files say, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lorica.common.backbone.files import settings_sha256
from lorica.common.backbone.loading import Backbone, load_backbone
from lorica.common.backbone.pooling import Pooling
from lorica.common.data.records import Records
from lorica.common.errors import Code
from lorica.common.plan import RunPlan
from lorica.common.plan.subject import BackbonePlan
from lorica.common.tasks import task_of
from lorica.common.tasks.inputs import collate
from lorica.common.tasks.model import PooledModel

Refuses = Callable[[Code, Callable[[], object]], str]

TEXTS = ["card lost", "the fever is very old today my doctor", "x"]


def load(folder: Path) -> Backbone:
    return load_backbone(BackbonePlan(source=str(folder)))


def with_modules(folder: Path, *modules: tuple[str, dict[str, Any] | None]) -> Path:
    """Add sentence-transformers files: (kind, config), as its version 6 writes them."""
    listed = []
    for number, (kind, config) in enumerate(modules):
        path = "" if kind == "Transformer" else f"{number}_{kind}"
        listed.append(
            {
                "idx": number,
                "name": str(number),
                "path": path,
                "type": f"sentence_transformers.sentence_transformer.modules.x.{kind}",
            }
        )
        if config is not None:
            (folder / path).mkdir(exist_ok=True)
            (folder / path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    return folder


def pooled_by_hand(states: np.ndarray, mode: str) -> np.ndarray:
    """The pooled vector of one text's own states (T, H), written out."""
    if mode == "cls":
        return states[0]
    if mode == "lasttoken":
        return states[-1]
    if mode == "max":
        return states.max(0)
    if mode == "mean":
        return states.mean(0)
    if mode == "mean_sqrt_len_tokens":
        return states.sum(0) / np.sqrt(len(states))
    places = np.arange(1, len(states) + 1)[:, None]
    return (states * places).sum(0) / places.sum()


MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
OLD = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def features_and_states(backbone: Backbone) -> tuple[np.ndarray, list[np.ndarray]]:
    """Pooled unit vectors by the model of a task, and every text's own states, unpadded."""
    plan = RunPlan().replace(
        backbone={"source": str(backbone.folder)},
        task={"labels": ["a", "b"]},
        adapter={"kind": "head"},
    )
    model = task_of(plan).model(backbone)
    assert isinstance(model, PooledModel)
    nothing = [""] * len(TEXTS)
    inputs: Any = task_of(plan).encode(backbone, Records(TEXTS, nothing, nothing, nothing))
    with torch.no_grad():
        pooled = model.pooled_of_ids(*collate(inputs, range(len(TEXTS))))
        states = [
            backbone.model(torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
            for ids in inputs.tokens
        ]
    return pooled.numpy(), states


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("old", [True, False], ids=["old keys", "new key"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_what_is_written_out_by_hand(
    small_backbone: Path, mode: str, old: bool
) -> None:
    config = {key: name == mode for name, key in OLD.items()} if old else {"pooling_mode": mode}
    folder = with_modules(small_backbone, ("Transformer", None), ("Pooling", config))
    backbone = load(folder)
    assert backbone.pooling.modes == (mode,)
    found, states = features_and_states(backbone)
    wanted = [unit(pooled_by_hand(text, mode)) for text in states]  # reference: numpy
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode": ["lasttoken", "cls"]}, ["lasttoken", "cls"]),
        ({"pooling_mode": ["mean"]}, ["mean"]),
        # old keys are concatenated in sentence-transformers' own order
        (
            {OLD["lasttoken"]: True, OLD["mean"]: True, OLD["max"]: True},
            ["max", "mean", "lasttoken"],
        ),
    ],
)
def test_several_modes_are_written_one_after_the_other(
    small_backbone: Path, config: dict[str, Any], modes: list[str]
) -> None:
    backbone = load(with_modules(small_backbone, ("Transformer", None), ("Pooling", config)))
    assert backbone.feature_size == 32 * len(modes)
    found, states = features_and_states(backbone)
    wanted = [unit(np.concatenate([pooled_by_hand(s, mode) for mode in modes])) for s in states]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "by_hand"),
    [
        ("torch.nn.modules.activation.Tanh", np.tanh),
        ("torch.nn.modules.linear.Identity", lambda x: x),
        ("torch.nn.modules.activation.ReLU", lambda x: np.maximum(x, 0)),
    ],
)
def test_what_follows_the_pooling_is_computed_too(
    small_backbone: Path, activation: str, by_hand: Callable[[Any], Any]
) -> None:
    dense = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": activation}
    folder = with_modules(
        small_backbone,
        ("Transformer", None),
        ("Pooling", {"pooling_mode": "mean"}),
        ("Dense", dense),
        ("Normalize", None),
    )
    random = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(8, 32, generator=random), torch.randn(8, generator=random)
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense/model.safetensors")
    backbone = load(folder)
    assert (backbone.hidden_size, backbone.feature_size) == (32, 8)
    found, states = features_and_states(backbone)
    wanted = [unit(by_hand(weight.numpy() @ s.mean(0) + bias.numpy())) for s in states]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    before = settings_sha256(folder)
    save_file({"linear.weight": -weight}, folder / "2_Dense/model.safetensors")
    assert settings_sha256(folder) != before  # the weights are among what is agreed


def test_the_usual_prompt_stands_before_every_text(small_backbone: Path) -> None:
    plain, _ = features_and_states(load(small_backbone))
    config = {"prompts": {"query": "my doctor ", "passage": ""}, "default_prompt_name": "query"}
    path = small_backbone / "config_sentence_transformers.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    load_backbone.__globals__["_load"].cache_clear()
    backbone = load(small_backbone)
    assert backbone.pooling.prompt == "my doctor "
    _, states = features_and_states(backbone)
    by_hand = [
        backbone.model(
            torch.tensor([backbone.tokenizer("my doctor " + text)["input_ids"]])
        ).last_hidden_state[0]
        for text in TEXTS
    ]
    for found, wanted in zip(states, by_hand, strict=True):
        np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-6)
    path.write_text(json.dumps(config | {"default_prompt_name": None}), encoding="utf-8")
    load_backbone.__globals__["_load"].cache_clear()
    again, _ = features_and_states(load(small_backbone))
    np.testing.assert_array_equal(again, plain)


@pytest.mark.parametrize(
    ("modules", "named"),
    [
        ([("Transformer", None), ("CNN", None)], "CNN"),
        ([("Transformer", None), ("WeightedLayerPooling", None)], "WeightedLayerPooling"),
        ([("StaticEmbedding", None)], "StaticEmbedding"),
        ([("Transformer", None), ("Pooling", {"pooling_mode": "attention"})], "attention"),
        ([("Transformer", None), ("Pooling", {"include_prompt": False})], "include_prompt"),
        (
            [("Transformer", None), ("Pooling", {}), ("Dense", {"activation_function": "a.Mish"})],
            "Mish",
        ),
        ([("Transformer", None), ("Pooling", {}), ("Dense", {})], "safetensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_lorica_does_not_compute_is_refused_by_name(
    small_backbone: Path,
    modules: list[tuple[str, dict[str, Any] | None]],
    named: str,
    refuses: Refuses,
) -> None:
    folder = with_modules(small_backbone, *modules)
    assert named in refuses(Code.BACKBONE_UNSUPPORTED, lambda: load(folder))


@pytest.mark.parametrize("file", ["modules.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("content", ["{", "3", '"x"', "[3]"])
def test_damaged_files_are_refused_not_read_as_the_mean(
    small_backbone: Path, file: str, content: str, refuses: Refuses
) -> None:
    (small_backbone / file).parent.mkdir(exist_ok=True)
    (small_backbone / file).write_text(content)
    assert file in refuses(Code.BACKBONE_UNSUPPORTED, lambda: load(small_backbone))


@pytest.mark.parametrize("modes", [("mean",), ("max", "lasttoken"), ("weightedmean", "cls")])
def test_the_lines_of_a_readme_compute_the_same(modes: Any) -> None:
    pooling = Pooling(modes)
    random = torch.Generator().manual_seed(3)
    states = torch.randn(4, 5, 6, generator=random)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]])
    names: dict[str, Any] = {"torch": torch, "states": states, "batch": {"attention_mask": mask}}
    exec(pooling.lines(), names)
    torch.testing.assert_close(names["pooled"], pooling(states, mask))
