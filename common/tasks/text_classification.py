"""Multi-class text classification: an encoder, mean pooling, a linear head.

A text's feature is its pooled token states scaled to unit length, less a center c, scaled to
unit length again, f (H,); its logits are W f + b with W (labels, H). The rows of W start as the
features of the label names times ``ZERO_SHOT_SCALE``, which classifies by cosine similarity
before any training; c is the mean of the names' pooled states, or 0 (``adapter.center``).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone
from lorica.common.data.records import Records
from lorica.common.plan import RunPlan
from lorica.common.tasks.classes import Classes
from lorica.common.tasks.inputs import Inputs, collate, encode, encode_pooled
from lorica.common.tasks.labels import label_text
from lorica.common.tasks.model import PooledModel, starting_factors
from lorica.common.tasks.usage import usage_of_pooled

ZERO_SHOT_SCALE = 16.0
"""Inverse temperature of the label-name start; softmax(16 · cosine) is about calibrated."""

_NAME_TOKENS = 32
_TEXT_TOKENS = 128  # of a description

BIAS_INPUT = 0.1
"""In mode "gradient" the head's bias is trained as the weight of a constant input of this size:
b = 0.1·w, with the gradient 0.1·Σr for w. With an input of 1, as plain as it is, the bias takes
half of every record's clip norm and gives little for it."""


class TextClassifier(PooledModel):
    """A pooled model with a row of the head for every label."""

    def __init__(self, backbone: Backbone, plan: RunPlan) -> None:
        super().__init__(backbone, plan, len(plan.task.labels))


class TextClassification(Classes):
    """Texts, each with one of the plan's labels."""

    kind: ClassVar[str] = "text-classification"
    pipeline_tag: ClassVar[str] = "text-classification"

    def encode(self, backbone: Backbone, records: Records) -> Inputs:
        return encode_pooled(self.plan, backbone, records.texts)

    def model(self, backbone: Backbone) -> PooledModel:
        return TextClassifier(backbone, self.plan)

    def start(self, backbone: Backbone) -> State:
        return starting_state(self.model(backbone), backbone, self.plan)

    def about(self, backbone: Backbone) -> dict[str, Any]:
        return pooled_about(self.plan, backbone)

    def usage(self, backbone: Backbone) -> str:
        return usage_of_pooled(self.plan, backbone, self.answer)


def pooled_about(plan: RunPlan, backbone: Backbone) -> dict[str, Any]:
    """What :func:`~lorica.common.tasks.usage.usage_of_pooled` reads of ``lorica.json``."""
    return {
        "labels": plan.task.labels,
        "pooling": list(backbone.pooling.modes),
        "prompt": backbone.pooling.prompt,
        "normalize": True,
        "max_length": min(plan.training.max_length, backbone.max_length),
        "keep": plan.training.keep,
    }


def starting_state(classifier: PooledModel, backbone: Backbone, plan: RunPlan) -> State:
    """The common start of a run, from the plan and its seed alone.

    LoRA as :func:`~lorica.common.tasks.model.starting_factors`. Head: label-name features times
    ``ZERO_SHOT_SCALE``, bias 0; of labels with descriptions in the plan, the features of the mean
    of what is pooled of them.
    """
    generator = torch.Generator().manual_seed(plan.rounds.seed)
    state = starting_factors(classifier, generator)
    meanings = plan.task.meanings
    texts = [meanings.get(label) or [label_text(label)] for label in plan.task.labels]
    names = encode(
        backbone,
        [text for own in texts for text in own],
        _TEXT_TOKENS if plan.task.descriptions else _NAME_TOKENS,
        prompt=backbone.pooling.prompt,
    )
    classifier.load_state(state)
    with torch.no_grad():
        every = classifier.pooled_of_ids(*collate(names, range(len(names))))
        pooled = torch.stack([part.mean(0) for part in every.split([len(own) for own in texts])])
        if plan.adapter.center == "labels":
            state["head.center"] = pooled.mean(0)
            classifier.load_state(state)
        state["head.weight"] = ZERO_SHOT_SCALE * classifier.features(pooled)
    return state
