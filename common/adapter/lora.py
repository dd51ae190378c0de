"""Adapter states: attach LoRA factors, read and write their tensors, one blob on the wire.

A *state* maps names to CPU tensors, as described in :mod:`lorica.common.plan.methods`. Names of
LoRA factors are those that peft saves, so a state can be written as a peft adapter unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

from lorica.common.errors import Code, LoricaError
from lorica.common.plan.subject import AdapterPlan

GROUPS = frozenset({"attention", "feed-forward"})
"""Names in ``adapter.target_modules`` that stand for several modules of every layer."""

_PEFT_ADAPTER = "default"  # peft's name for the one adapter of a model


def structural_copy(module: Any, *, same: Iterable[nn.Module] = ()) -> Any:
    """A copy of the module tree that shares every parameter and buffer with the original.

    Attaching adapters to the copy leaves the original as it is and costs no memory for weights.

    Args:
        module: any module.
        same: modules of the tree that are not copied: the copy has the very same. Copying takes
            time for every module, whatever its size.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in module.parameters()}
    shared |= {id(tensor): tensor for tensor in module.buffers()}
    shared |= {id(part): part for part in same}
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
    """Number of transformer layers; 0 for networks that are no list of them (ConvNeXt, ResNet),
    and for those that run one layer many times (ALBERT)."""
    path = layer_list(encoder)
    return 0 if path is None else len(encoder.get_submodule(path))


def layer_list(encoder: Any) -> str | None:
    """Path of the list of transformer layers, e.g. "encoder.layer"."""
    config = encoder.config
    if getattr(config, "hidden_sizes", None):
        return None
    count = int(getattr(config, "num_hidden_layers", None) or 0)
    for path, module in encoder.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module) == count > 0:
            continue
        if not any(isinstance(layer, nn.ModuleList) for layer in module):
            return str(path)
    return None


def lora_config(plan: AdapterPlan, encoder: Any) -> Any:
    """The peft ``LoraConfig`` of a plan for an encoder.

    Of a group, modules that cannot be adapted are left out (:func:`fit_of`); one that is named
    stays, and is refused by whoever tries it.

    Where the list of layers is at an encoder's top (GPT-2, Llama), peft cannot tell layers by
    their numbers, and the modules are named in full; so are those of a group.
    """
    from peft import LoraConfig, TaskType

    layers = layer_indices(plan, layer_count(encoder))
    path = layer_list(encoder) if layer_count(encoder) else None
    wanted = plan.target_modules or ["attention"]
    modules, by_number = list(wanted), True
    in_full = path is not None and "." not in path
    if in_full or not GROUPS.isdisjoint(modules):
        above = tuple(f"{path}.{layer}." for layer in layers) if path is not None else ""
        linear = [name for name in linear_modules(encoder) if name.startswith(above)]
        groups = GROUPS.intersection(wanted)
        grouped = fit_of(
            encoder, [name for name in linear if not wanted_as(name).isdisjoint(groups)]
        )
        named = {name for name in linear if name.rpartition(".")[2] in wanted}
        modules = [name for name in linear if name in named or name in grouped]
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


def note_unfit(encoder: Any, names: Iterable[str]) -> None:
    """Keep with an encoder (and its structural copies) which of its linear modules a trial found
    to run other than once in a pass, or on something else than one input per record
    (:mod:`lorica.common.backbone.trial`)."""
    encoder.lorica_unfit = frozenset(names)


def fit_of(encoder: Any, names: Iterable[str]) -> list[str]:
    """Of modules that nobody named one by one, those that can be adapted; all of them where none
    can, so that whoever tries says why."""
    given = list(names)
    unfit: frozenset[str] = getattr(encoder, "lorica_unfit", frozenset())
    return [name for name in given if name not in unfit] or given


def attach_lora(encoder: nn.Module, plan: AdapterPlan) -> nn.Module:
    """The encoder wrapped by peft with LoRA factors on the plan's modules (in place).

    Raises:
        LoricaError: LOR-204 when no module of the encoder matches the plan.
    """
    from peft import get_peft_model
    from transformers.pytorch_utils import Conv1D

    config = lora_config(plan, encoder)
    found = linear_modules(encoder)
    names = {name.rpartition(".")[2] for name in found}
    known = names.union(*map(wanted_as, found))
    wanted = plan.target_modules or ["attention"]
    missing = [name for name in wanted if name not in known]
    if missing:
        what = (
            f"module of its {missing[0]}"
            if missing[0] in GROUPS
            else f"module named {missing[0]!r}"
        )
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f"adapter.target_modules: the backbone has no linear {what}; "
            f"it has {', '.join(sorted(names))}.",
        )
    chosen = [m for n, m in found.items() if not wanted_as(n).isdisjoint(wanted)]
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in chosen)
    return get_peft_model(encoder, config)


def linear_modules(encoder: nn.Module) -> dict[str, nn.Module]:
    """The linear modules of an encoder by path; of its list of layers, where it has one."""
    from transformers.pytorch_utils import Conv1D

    path = layer_list(encoder) if layer_count(encoder) else None
    within = "" if path is None else f"{path}."
    return {
        name: module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(within)
    }


def wanted_as(name: str) -> set[str]:
    """What ``adapter.target_modules`` may call the linear module at a path: its last part, or the
    group it belongs to. Whatever lies in a module called after attention is attention's."""
    *above, last = name.split(".")
    attention = any(word in part.lower() for part in above for word in ("attention", "attn"))
    return {last, "attention" if attention else "feed-forward"}


def lora_parameters(encoder: nn.Module) -> dict[str, nn.Parameter]:
    """The LoRA factors of a peft model by their names in a state."""
    found: dict[str, nn.Parameter] = {}
    for name, parameter in encoder.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            found[name.replace(f".{_PEFT_ADAPTER}.", ".")] = parameter
    return found
