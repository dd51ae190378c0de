"""Quality of a global state on labelled data that the coordinator itself holds."""

from __future__ import annotations

import torch

from lorica.common.adapters import State
from lorica.common.backbones import Backbone
from lorica.common.memory import release_unused
from lorica.common.plan import RunPlan
from lorica.common.prefix_cache import SHELF, predict_logits
from lorica.common.records import Records, label_indices
from lorica.common.stages import schedule
from lorica.common.tasks.text_classification import Metrics, TextClassifier, encode, metrics


class CentralEvaluator:
    """Evaluates states of one plan on the coordinator's test data, encoded once."""

    def __init__(self, plan: RunPlan, backbone: Backbone, test: Records) -> None:
        """Raises LoricaError LOR-306 when the test data have a label the plan lacks."""
        labels = label_indices(test, plan.task.labels, where="The test data")
        self._labels = torch.tensor(labels, dtype=torch.int64)
        self._classifier = TextClassifier(backbone, plan).eval()
        encoded = encode(backbone, test.texts, plan.training.max_length)
        later = any(not stage.on_frozen_features for stage, _ in schedule(plan))
        self._cache = SHELF.get(self._classifier, encoded, backbone=backbone, states=later)

    def __call__(self, state: State) -> Metrics:
        """Metrics of the adapter state on the test data."""
        self._classifier.load_state(state)
        logits = predict_logits(self._classifier, self._cache)
        release_unused()
        return metrics(logits, self._labels)
