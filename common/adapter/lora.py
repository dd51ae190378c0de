"""Adapter states: attach LoRA factors, read and write their tensors, one blob on the wire.

A *state* maps names to CPU tensors, as described in :mod:`lorica.common.plan.methods`. Names of
LoRA factors are those that peft saves, so a state can be written as a peft adapter unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import nn

from lorica.common.errors import Code, LoricaError
from lorica.common.plan.subject import AdapterPlan

State = dict[str, torch.Tensor]

_PEFT_ADAPTER = "default"  # peft's name for the one adapter of a model


def structural_copy(module: Any) -> Any:
    """A copy of the module tree that shares every parameter and buffer with the original.

    Attaching adapters to the copy leaves the original as it is and costs no memory for weights.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in module.parameters()}
    shared |= {id(tensor): tensor for tensor in module.buffers()}
    return copy.deepcopy(module, shared)


def layer_indices(plan: AdapterPlan, layers: int) -> list[int]:
    """The plan's layers as sorted indices from 0; all when the plan names none.

    Raises:
        LoricaError: LOR-204 for an index that the model does not have.
    """
    if not layers and plan.layers:
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            "adapter.layers names layers, but the backbone is no list of equal layers.",
            mend="Set adapter.layers to [], which stands for all.",
        )
    indices = plan.layers or list(range(layers))
    wrong = [index for index in indices if not -layers <= index < layers]
    if wrong:
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f"adapter.layers names layer {wrong[0]}, but the backbone has {layers} layers "
            f"(0 to {layers - 1}, or negative from the end).",
        )
    return sorted({index % layers for index in indices})


def layer_count(encoder: Any) -> int:
    """Number of transformer layers; 0 for networks that are no list of them (ConvNeXt, ResNet)."""
    config = encoder.config
    if getattr(config, "hidden_sizes", None):
        return 0
    return int(getattr(config, "num_hidden_layers", 0))


def layer_list(encoder: Any) -> str | None:
    """Path of the list of transformer layers, e.g. "encoder.layer"."""
    count = layer_count(encoder)
    for path, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return str(path)
    return None


def lora_config(plan: AdapterPlan, encoder: Any) -> Any:
    """The peft ``LoraConfig`` of a plan for an encoder.

    Where the list of layers is at an encoder's top (GPT-2, Llama), peft cannot tell layers by
    their numbers, and the modules are named in full.
    """
    from peft import LoraConfig, TaskType

    layers = layer_indices(plan, layer_count(encoder))
    path = layer_list(encoder)
    modules, by_number = list(plan.target_modules), True
    if path is not None and "." not in path:
        above = tuple(f"{path}.{layer}." for layer in layers)
        names = [name for name, _ in encoder.named_modules() if name.startswith(above)]
        modules = [name for name in names if name.rpartition(".")[2] in plan.target_modules]
        by_number = False
    return LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=plan.rank,
        lora_alpha=plan.alpha,
        target_modules=modules,
        layers_to_transform=layers or None if by_number else None,
        lora_dropout=0.0,
        bias="none",
    )


def attach_lora(encoder: nn.Module, plan: AdapterPlan) -> nn.Module:
    """The encoder wrapped by peft with LoRA factors on the plan's modules (in place).

    Raises:
        LoricaError: LOR-204 when no module of the encoder matches the plan.
    """
    from peft import get_peft_model
    from transformers.pytorch_utils import Conv1D

    config = lora_config(plan, encoder)
    found = {
        name.rpartition(".")[2]: module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    missing = [name for name in plan.target_modules if name not in found]
    if missing:
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f"adapter.target_modules: the backbone has no linear module named {missing[0]!r}; "
            f"it has {', '.join(sorted(found))}.",
        )
    config.fan_in_fan_out = any(isinstance(found[name], Conv1D) for name in plan.target_modules)
    return get_peft_model(encoder, config)


def lora_parameters(encoder: nn.Module) -> dict[str, nn.Parameter]:
    """The LoRA factors of a peft model by their names in a state."""
    found: dict[str, nn.Parameter] = {}
    for name, parameter in encoder.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            found[name.replace(f".{_PEFT_ADAPTER}.", ".")] = parameter
    return found


def write_state(parameters: Mapping[str, nn.Parameter], state: Mapping[str, torch.Tensor]) -> None:
    """Copy a state into the parameters of the same names.

    Raises:
        LoricaError: LOR-205 when names or shapes differ.
    """
    check_shapes(state, {name: p.shape for name, p in parameters.items()})
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def read_state(parameters: Mapping[str, nn.Parameter]) -> State:
    """A copy of the parameters as a float32 CPU state."""
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in parameters.items()
    }


def check_shapes(state: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Refuse a state whose names or shapes are not exactly ``shapes``.

    Raises:
        LoricaError: LOR-205, naming the first difference.
    """
    for name in sorted(set(shapes) - set(state)):
        raise LoricaError(Code.ADAPTER_MISMATCH, f"The adapter lacks the tensor {name}.")
    for name in sorted(set(state) - set(shapes)):
        raise LoricaError(Code.ADAPTER_MISMATCH, f"The adapter has an unexpected tensor {name}.")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise LoricaError(
                Code.ADAPTER_MISMATCH,
                f"The adapter's {name} has shape {tuple(state[name].shape)}, "
                f"the plan's {tuple(shape)}.",
            )


def pack_state(state: Mapping[str, torch.Tensor]) -> bytes:
    """The state as one safetensors blob; every torch dtype that safetensors has, bf16 included."""
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in state.items()})


def unpack_state(blob: bytes) -> State:
    """The state in a safetensors blob; dtypes as stored.

    Raises:
        LoricaError: LOR-501 when the blob is no safetensors.
    """
    try:
        return safetensors.torch.load(blob)
    except Exception as error:  # hostile bytes raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoricaError(
            Code.MESSAGE_MALFORMED, f"The adapter blob is not valid safetensors: {reason}."
        ) from error
