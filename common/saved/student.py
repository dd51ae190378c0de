"""A smaller model of the same kind: some layers of a backbone that an adapter is merged into."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorica.common.adapter.lora import layer_count, layer_list
from lorica.common.backbone.loading import Backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.saved.exported.fold import Folded
from lorica.common.saved.exported.written import copy_settings


def kept_layers(layers: int, count: int) -> list[int]:
    """``count`` of ``layers`` layers, evenly spaced, first and last among them; one alone is the
    first."""
    if count == 1:
        return [0]
    return [round(place * (layers - 1) / (count - 1)) for place in range(count)]


def smaller(folding: Folded, count: int) -> Any:
    """A model of ``count`` layers with the merged weights, float32, its tensors its own.

    Raises:
        LoricaError: LOR-204 the backbone is no list of layers, has not more than ``count``, or has
            modules of its own after pooling.
    """
    backbone = folding.backbone
    path, layers = layer_list(backbone.model), layer_count(backbone.model)
    if path is None or not 0 < count < layers:
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f"Of the backbone's {layers} layers, {count} cannot be kept: a student has fewer.",
            mend=f"Give --layers 1 to {layers - 1}." if layers > 1 else "Distil another adapter.",
        )
    if backbone.pooling.tensors:
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            "The backbone has modules of its own after pooling, which a student cannot have.",
        )
    model = copy.deepcopy(backbone.model)
    model.load_state_dict(folding.own | folding.changed)
    kept = kept_layers(layers, count)
    chosen = [model.get_submodule(f"{path}.{index}") for index in kept]
    above, _, name = path.rpartition(".")
    setattr(model.get_submodule(above), name, nn.ModuleList(chosen))
    for module in (module for layer in chosen for module in layer.modules()):
        if hasattr(module, "layer_idx"):
            module.layer_idx = kept.index(int(module.layer_idx))
    for key, value in model.config.to_dict().items():
        if isinstance(value, list) and len(value) == layers:  # one entry for every layer
            setattr(model.config, key, [value[index] for index in kept])
    model.config.num_hidden_layers = count
    return model


def write_model(model: Any, backbone: Backbone, folder: Path) -> None:
    """Weights and config of a model, with the settings of the backbone it is made of."""
    folder.mkdir()
    copy_settings(backbone, folder)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)


def parameters(model: nn.Module) -> int:
    """Numbers in a model."""
    return sum(tensor.numel() for tensor in model.parameters())


def trainable(model: Any) -> list[torch.nn.Parameter]:
    """A model's parameters but embeddings, which most words of few texts would never reach."""
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    found = [p for p in model.parameters() if id(p) not in embeddings]
    for parameter in found:
        parameter.requires_grad_(True)
    return found
