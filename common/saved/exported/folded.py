"""An adapter's model as the run left it, and on a backbone that has the adapter in its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lorica.common.backbone.loading import Backbone
from lorica.common.plan import RunPlan
from lorica.common.saved.exported.fold import Folded
from lorica.common.saved.folder import SavedAdapter
from lorica.common.tasks import task_of
from lorica.common.tasks.base import Task
from lorica.common.tasks.model import AdaptedModel


def adapted_model(saved: SavedAdapter, backbone: Backbone) -> tuple[Task, AdaptedModel]:
    """As the run left it, in float32 and eval mode."""
    task = task_of(saved.plan.replace(training={"precision": "float32"}))
    model = task.model(backbone).eval()
    model.load_state(saved.state)
    return task, model


def head_model(
    saved: SavedAdapter, folding: Folded, tensors: Mapping[str, torch.Tensor]
) -> tuple[Task, AdaptedModel]:
    """The adapter's head on the plain backbone with these tensors in the place of its own; all
    others are shared with it."""
    task, model = on_backbone(saved, folding.backbone)
    for name, tensor in tensors.items():
        module, _, own = name.rpartition(".")
        parameter = nn.Parameter(tensor, requires_grad=False)
        setattr(model.encoder.get_submodule(module), own, parameter)
    return task, model


@torch.no_grad()
def on_backbone(saved: SavedAdapter, backbone: Backbone) -> tuple[Task, AdaptedModel]:
    """The adapter's head on a backbone, which has whatever else the adapter changes."""
    task = head_task(saved.plan)
    model = task.model(backbone).eval()
    for name, parameter in model.adapter_parameters.items():
        parameter.copy_(saved.state[name])
    return task, model


def head_task(plan: RunPlan) -> Task:
    """The plan's task for a model without an adapter."""
    changes = {
        "adapter": plan.adapter.model_copy(update={"kind": "head"}),
        "training": plan.training.model_copy(update={"precision": "float32"}),
        "backbone": plan.backbone.model_copy(update={"quantize": "none"}),
    }
    # A copy that no rule looks at: nobody agrees to it, it only says how the model is built.
    return task_of(plan.model_copy(update=changes))
