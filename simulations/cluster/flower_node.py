"""The virtual nodes of Flower's own simulation runtime (`flwr run .`)."""

from __future__ import annotations

import threading

from flwr.app import Context

from lorica.client.training.trainer import LocalTrainer
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks.run_data import load_data
from lorica.common.wire.messages import Reply, Request
from lorica.simulations.run.sites import make_trainers
from lorica.simulations.run.virtual import InOrder


class SimulatedNode:
    """The trainer of a virtual node whose data are known only from the plan it is asked with.

    Worker processes of Flower's simulation engine make the same division of the same data from
    the plan's seed, once per process and data set.
    """

    _made: InOrder[LocalTrainer] = InOrder({})
    _made_for: str = ""
    _lock = threading.Lock()

    def __init__(self, node: int) -> None:
        """``node``: the partition id."""
        self._node = node
        self.site = f"node {node}"

    def capabilities(self, request: Request) -> Reply:
        """As :meth:`LocalTrainer.capabilities`."""
        return self._trainer(request.plan).capabilities(request)

    def train(self, request: Request) -> Reply:
        """As :meth:`LocalTrainer.train`."""
        return self._trainer(request.plan).train(request)

    def evaluate(self, request: Request) -> Reply:
        """As :meth:`LocalTrainer.evaluate`."""
        return self._trainer(request.plan).evaluate(request)

    def _trainer(self, plan: RunPlan) -> LocalTrainer:
        kind = type(self)
        with kind._lock:
            if kind._made_for != plan.fingerprint:
                kind._made = InOrder(make_trainers(load_data(plan).train, plan))
                kind._made_for = plan.fingerprint
            trainers = kind._made
            if self._node >= len(trainers):
                raise LoricaError(
                    Code.DATA_PARTITION,
                    f"The engine started node {self._node}, but the data make {len(trainers)} "
                    "sites.",
                )
            return trainers[self._node]


def trainer_of(context: Context) -> SimulatedNode:
    """Entry point: the trainer of a node that Flower's simulation engine made."""
    return SimulatedNode(int(context.node_config["partition-id"]))
