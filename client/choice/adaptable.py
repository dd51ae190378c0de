"""Which modules of a backbone can be adapted: tried one by one, on made-up records."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lorica.client.mechanism.gradient_trial import require_right_gradients
from lorica.common.adapter.lora import layer_list
from lorica.common.backbone.batch_norm import couples_records
from lorica.common.backbone.loading import Backbone
from lorica.common.errors import LoricaError
from lorica.common.plan import RunPlan


@dataclass(frozen=True)
class Adaptable:
    """One name that adapter.target_modules may hold, or the biases (kind "bitfit")."""

    name: str
    count: int
    """Modules of the name in all layers."""
    problem: str = ""
    """Why it cannot be adapted; "" when it can."""


def adaptable(backbone: Backbone) -> list[Adaptable]:
    """What a backbone's layers hold of linear modules, each tried by itself."""
    from transformers.pytorch_utils import Conv1D

    path = layer_list(backbone.model)
    above = "" if path is None else f"{path}."
    counts: dict[str, int] = {}
    for name, module in backbone.model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(above):
            last = name.rpartition(".")[2]
            counts[last] = counts.get(last, 0) + 1
    found = [
        Adaptable(name, count, _problem(backbone, kind="lora", target_modules=[name]))
        for name, count in sorted(counts.items())
    ]
    if path is not None:
        biases = sum(
            isinstance(module, nn.Linear) and module.bias is not None
            for module in backbone.model.get_submodule(path).modules()
        )
        found.append(Adaptable("biases", biases, _problem(backbone, kind="bitfit")))
    return found


def batch_norms(backbone: Backbone) -> int:
    """Number of layers that join the records of a batch."""
    return sum(couples_records(module) for module in backbone.model.modules())


def trial_plan(backbone: Backbone, **adapter: object) -> RunPlan:
    """A plan of a task that the backbone is for, with this adapter on all layers."""
    kind = "text-classification" if backbone.processor is None else "image-classification"
    fixed = {"batch_norm": "fixed", "layers": [], "rank": 2}
    return RunPlan().replace(
        backbone={"source": str(backbone.folder)},
        task={"kind": kind, "labels": ["a", "b"]},
        adapter={**fixed, **adapter},
        aggregation={"method": "fedavg"},
        training={"mode": "local"},
    )


def _problem(backbone: Backbone, **adapter: object) -> str:
    try:
        require_right_gradients(trial_plan(backbone, **adapter), backbone)
    except LoricaError as error:
        return error.detail
    return ""
