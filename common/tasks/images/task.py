"""Multi-class image classification: an encoder of images, pooling, a linear head.

An image's feature is its pooled state scaled to unit length, less a center c, scaled to unit
length again, f (H,): pooled is the state of the class token of a vision transformer, the mean over
patches where there is none, or what a convolutional network gives for the whole image (ConvNeXt,
ResNet). Its logits are W f + b. W starts at 0, b and c at 0: names of labels say nothing of pixels,
so there is no zero-shot start. The warm start finds W and, with ``adapter.center`` "labels", c
(:mod:`lorica.server.aggregation.sums.class_sums`). Where LoRA factors are trained from the first
round, the rows of W start as random directions of length 1, because with W = 0 they would have no
gradient.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional

from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone, require_kind
from lorica.common.backbone.precision import computing_in
from lorica.common.backbone.vision import READ, image_states
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks.classes import Classes
from lorica.common.tasks.images.pixels import VIEW_NUMBERS, Pixels, pixels_of
from lorica.common.tasks.inputs import Inputs
from lorica.common.tasks.model import AdaptedModel, PooledModel, starting_factors
from lorica.common.tasks.views import ViewNumbers


class ImageModel(PooledModel):
    """A pooled model of pixels."""

    def __init__(self, backbone: Backbone, plan: RunPlan, outputs: int) -> None:
        """As of a pooled model; raises LOR-204 for a backbone of texts, too."""
        super().__init__(require_kind(backbone, images=True), plan, outputs)
        assert backbone.readout is not None
        self._readout = backbone.readout

    def pooled_of_ids(self, pixels: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Unit-norm pooled states (n, H) of pixels (n, 3, S, S)."""
        with computing_in(self.numbers):
            output = self.encoder(pixel_values=pixels)
        return functional.normalize(image_states(output, self._readout), dim=-1)


class ImageClassification(Classes):
    """Images, each with one of the plan's labels."""

    kind: ClassVar[str] = "image-classification"
    pipeline_tag: ClassVar[str] = "image-classification"

    def check(self, records: Records, *, where: str) -> None:
        if records.images is None:
            raise LoricaError(
                Code.DATA_COLUMN,
                f'{where} has no images, which the task "{self.kind}" is for.',
                mend="Give a folder of images or of DICOM files.",
            )
        super().check(records, where=where)

    def encode(self, backbone: Backbone, records: Records) -> Inputs:
        return pixels_of(backbone, records)

    def model(self, backbone: Backbone) -> ImageModel:
        return ImageModel(backbone, self.plan, len(self.plan.task.labels))

    def outputs_of_views(
        self,
        model: AdaptedModel,
        inputs: Inputs,
        rows: np.ndarray,
        views: np.ndarray,
        random: ViewNumbers,
    ) -> torch.Tensor:
        assert isinstance(inputs, Pixels) and isinstance(model, ImageModel)
        numbers = random.of(inputs.contents(rows), views, VIEW_NUMBERS)
        seen = inputs.views(rows, self.plan.training.augment, numbers)
        return model.outputs(model.features(model.pooled_of_ids(*seen)), inputs, rows)

    def start(self, backbone: Backbone) -> State:
        return image_start(self.model(backbone), self.plan)

    def about(self, backbone: Backbone) -> dict[str, Any]:
        return {
            "labels": self.plan.task.labels,
            "pooling": backbone.readout,
            "batch_norm": self.plan.adapter.batch_norm,
        }

    def usage(self, backbone: Backbone) -> str:
        return usage_of_images(self.plan, backbone, self.answer)


def image_start(model: PooledModel, plan: RunPlan) -> State:
    """LoRA as :func:`~lorica.common.tasks.model.starting_factors`; W as the module says."""
    generator = torch.Generator().manual_seed(plan.rounds.seed)
    state = starting_factors(model, generator)
    from_first = plan.adapter.kind == "lora" and plan.training.mode == "local"
    if from_first and not plan.warm_rounds:
        rows = torch.randn(state["head.weight"].shape, generator=generator)
        state["head.weight"] = functional.normalize(rows, dim=1)
    return state


_GROUPED = """
def grouped(model):  # adapter.batch_norm = "group"
    for name, child in model.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            n = next(n for n in range(32, 0, -1) if child.num_features % n == 0)
            norm = torch.nn.GroupNorm(n, child.num_features, eps=child.eps)
            norm.load_state_dict({"weight": child.weight, "bias": child.bias})
            setattr(model, name, norm)
        else:
            grouped(child)

grouped(model)
"""


def usage_of_images(plan: RunPlan, backbone: Backbone, answer: str) -> str:
    """README lines of an adapter for images; ``answer`` goes on from ``outputs`` (n, C)."""
    assert backbone.readout is not None
    pooled = READ[backbone.readout]
    grouped = _GROUPED if plan.adapter.batch_norm == "group" else ""
    encoder = "model.get_base_model()" if plan.adapter.kind == "lora" else "model"
    return f"""from PIL import Image
{grouped}
batch = processor([Image.open("picture.png").convert("RGB")], return_tensors="pt")
with torch.no_grad():
    states = {encoder}(pixel_values=batch["pixel_values"])
features = torch.nn.functional.normalize({pooled}, dim=-1)
features = torch.nn.functional.normalize(features - head["head.center"], dim=-1)
outputs = features @ head["head.weight"].T + head["head.bias"]
{answer}
"""
