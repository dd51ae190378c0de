"""Small backbones of images, and records of them, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lorica.common.data.records import Records
from lorica.common.plan import RunPlan
from tests.made_once import made_once

SIDE = 16
FAMILIES = ("vit", "convnext", "resnet")


@made_once
def make_image_backbone(folder: Path, family: str, *, spread: float = 0.02) -> Path:
    """A tiny random network with an image processor of 16 x 16 pixels; ``spread``: of a ViT's
    weights, by which its features differ from image to image."""
    import torch
    import transformers as t

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "vit":
            model = t.ViTModel(
                t.ViTConfig(
                    image_size=SIDE,
                    patch_size=4,
                    hidden_size=24,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    intermediate_size=32,
                    initializer_range=spread,
                )
            )
        elif family == "convnext":
            model = t.ConvNextModel(
                t.ConvNextConfig(patch_size=2, num_stages=2, hidden_sizes=[8, 24], depths=[1, 1])
            )
        else:
            model = t.ResNetModel(
                t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1])
            )
            for module in model.modules():  # as if it were pre-trained
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.normal_(std=0.1)
                    module.running_var.uniform_(0.5, 2.0)
    processor = t.ViTImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.25],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def image_records(count: int, *, seed: int = 0) -> Records:
    """Records of two labels: bright at the left, or at the right."""
    draw = np.random.default_rng(seed)
    images, labels = [], []
    for number in range(count):
        image = draw.integers(0, 120, (20, 18, 3), dtype=np.uint8)
        side = slice(0, 9) if number % 2 else slice(9, 18)
        image[:, side] += 120
        images.append(image)
        labels.append("left" if number % 2 else "right")
    names = [f"image {number}" for number in range(count)]
    return Records(names, labels, [str(number) for number in range(count)], [""] * count, images)


def image_plan(backbone: Path, **sections: dict[str, object]) -> RunPlan:
    """A plan of image classification with the head alone."""
    plan = RunPlan().replace(
        backbone={"source": str(backbone)},
        task={"kind": "image-classification", "labels": ["left", "right"]},
        adapter={"kind": "head", "batch_norm": "fixed"},
        privacy={"delta": 1e-3},
        simulation={"sites": 3},
    )
    return plan.replace(**sections)
