"""Head rounds on pfl-research's SimulatedBackend.

    python benchmarks/peers/pfl_rounds.py TASK.npz ROUNDS [--empty]

A user of pfl is a site; ``simulate_one_user`` gives its noised sum, the backend adds them up, and
the algorithm makes a step of it. Prints the seconds of every round as JSON.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from head_round import Step, Task
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import FederatedAlgorithm
from pfl.callback.base import TrainingProcessCallback
from pfl.common_types import Population
from pfl.context import CentralContext
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import AlgorithmHyperParams, ModelHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from pfl.stats import MappedVectorStatistics


@dataclass(frozen=True)
class Params(AlgorithmHyperParams):
    """How many rounds of how many sites."""

    rounds: int
    cohort: int


class Head(torch.nn.Module):
    """The head; ``loss`` and ``metrics`` are what pfl asks a model to have."""

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(start)

    def loss(self, inputs: Any, targets: Any, eval: bool = False) -> torch.Tensor:
        raise NotImplementedError

    def metrics(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


class Rounds(FederatedAlgorithm):
    """Synchronised steps along the sum of the sites' noised sums."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._task, self._step = task, Step()

    def get_next_central_contexts(
        self, model: Any, iteration: int, params: Params, train: Any, evaluation: Any = None
    ) -> Any:
        if iteration == params.rounds:
            return None, model, Metrics()
        context = CentralContext(
            current_central_iteration=iteration,
            do_evaluation=False,
            cohort_size=params.cohort,
            population=Population.TRAIN,
            model_train_params=train,
            model_eval_params=evaluation,
            algorithm_params=params,
            seed=iteration,
        )
        return (context,), model, Metrics()

    def simulate_one_user(self, model: Any, data: Any, context: Any) -> Any:
        head = model.pytorch_model.weight.data
        release = self._task.release(head, int(data.user_id))
        return MappedVectorStatistics({"head": release}, weight=1.0), Metrics()

    def process_aggregated_statistics(
        self, context: Any, metrics: Any, model: Any, statistics: Any
    ) -> Any:
        head = model.pytorch_model.weight
        head.data = self._step(head.data, statistics["head"])
        return model, Metrics()


class Clock(TrainingProcessCallback):
    """Seconds of every round."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._at = time.perf_counter()

    def on_train_begin(self, *, model: Any) -> Any:
        self._at = time.perf_counter()
        return Metrics()

    def after_central_iteration(self, metrics: Any, model: Any, *, central_iteration: int) -> Any:
        now = time.perf_counter()
        self.seconds.append(now - self._at)
        self._at = now
        return False, Metrics()


def main() -> None:
    """Run and print."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    task = Task.read(Path(sys.argv[1]), rounds=int(sys.argv[2]), empty="--empty" in sys.argv)
    users = {str(place): Dataset(site, user_id=str(place)) for place, site in enumerate(task.sites)}
    sampler = get_user_sampler("minimize_reuse", list(users))
    data = FederatedDataset(users.__getitem__, sampler)
    head = Head(task.start())
    unused = torch.optim.SGD(head.parameters(), lr=1.0)
    model = PyTorchModel(head, lambda params: torch.optim.SGD(params, lr=1.0), unused)
    clock = Clock()
    Rounds(task).run(
        Params(task.rounds, len(task.sites)),
        SimulatedBackend(data, data),
        model,
        ModelHyperParams(),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    print(json.dumps(clock.seconds))


if __name__ == "__main__":
    main()
