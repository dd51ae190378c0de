"""Quality of a global state on labelled data that the coordinator itself holds."""

from __future__ import annotations

import numpy as np
import torch

from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone
from lorica.common.cache.prefix import judgements
from lorica.common.cache.shelf import SHELF
from lorica.common.data.records import Records
from lorica.common.machine.memory import release_unused
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import schedule
from lorica.common.tasks import task_of
from lorica.common.tasks.base import Metrics


class CentralEvaluator:
    """Evaluates states of one plan on the coordinator's test data, encoded once."""

    def __init__(self, plan: RunPlan, backbone: Backbone, test: Records) -> None:
        """Raises LoricaError LOR-306 or LOR-311 when the test data have a target that is not the
        plan's."""
        self._task = task_of(plan)
        self._task.check(test, where="The test data")
        self._model = self._task.model(backbone).eval()
        encoded = self._task.encode(backbone, test)
        self._targets = self._task.targets(test, encoded)
        self._strata = self._task.strata(test)
        later = any(not stage.on_frozen_features for stage, _ in schedule(plan))
        self._cache = SHELF.get(self._model, encoded, backbone=backbone, states=later)

    @property
    def records(self) -> int:
        """How many test records there are."""
        return len(self._strata)

    @property
    def strata(self) -> list[str]:
        """The class of every test record, as the task divides them."""
        return self._strata

    def judge(self, state: State, rows: np.ndarray | None = None) -> torch.Tensor:
        """The task's judgements (n, S) of the adapter state on the test data, or some rows."""
        self._model.load_state(state)
        table = judgements(self._task, self._model, self._cache, self._targets, rows)
        release_unused()
        return table

    def metrics(self, table: torch.Tensor) -> Metrics:
        """The task's metrics of a table of judgements with at least one row."""
        return self._task.metrics(table)

    def __call__(self, state: State) -> Metrics:
        """Metrics of the adapter state on the test data."""
        return self.metrics(self.judge(state))
