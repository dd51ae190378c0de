"""A saved adapter with random values on a small backbone, for whatever uses one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lorica.common.backbone.loading import load_backbone
from lorica.common.plan import RunPlan
from lorica.common.saved.folder import save_adapter
from lorica.common.tasks.text_classification import TextClassifier


def random_adapter(
    folder: Path, backbone: Path, labels: Sequence[str], *, center: float = 1.0
) -> Path:
    """Save it to ``folder``; returns that.

    Args:
        folder: must not exist.
        backbone: a small backbone's folder.
        labels: of the task, which is text classification.
        center: factor of the head's center: random texts of a random model are all alike, and a
            small one keeps the answers apart.
    """
    plan = RunPlan().replace(backbone={"source": str(backbone)}, task={"labels": list(labels)})
    loaded = load_backbone(plan.backbone)
    generator = torch.Generator().manual_seed(0)
    parameters = TextClassifier(loaded, plan).adapter_parameters
    state = {n: torch.randn(p.shape, generator=generator) for n, p in parameters.items()}
    state["head.center"] *= center
    save_adapter(folder, state, plan, loaded)
    return folder
