"""Run one federation over virtual sites, wherever they live."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from lorica.client.answering.endpoint import make_client_app
from lorica.client.answering.protocol import Trainer
from lorica.common.adapter.state import State
from lorica.common.plan import RunPlan
from lorica.simulations.run.direct import DirectInProcessGrid, DirectNodes
from lorica.simulations.run.grid import InProcessGrid
from lorica.simulations.run.nodes import VirtualNodes
from lorica.simulations.run.virtual import InOrder
from lorica.simulations.run.workers import Nodes, Workers

Main = Callable[[Grid], State]
"""The coordinator's side: runs all rounds over a grid and returns the final state."""


def run_in_process(
    main: Main,
    trainers: Mapping[str, Trainer],
    workers: Workers | None = None,
    *,
    plan: RunPlan | None = None,
) -> State:
    """Run with sites called in this process, or in workers that have them.

    Args:
        main: the coordinator's side.
        trainers: the sites.
        workers: made for just these; None: there are none.
        plan: says whether requests travel as messages; None: they do.
    """
    app = _app_of(trainers)
    if plan is None or plan.simulation.messages == "real":
        return main(InProcessGrid(app, len(trainers), workers))
    nodes, ahead = DirectNodes(InOrder(trainers)), not plan.rounds.over_provision
    return main(DirectInProcessGrid(app, nodes, workers, ahead=ahead))


def virtual_nodes(trainers: Mapping[str, Trainer], plan: RunPlan) -> Nodes:
    """Nodes of these trainers, for workers."""
    if plan.simulation.messages == "direct":
        return DirectNodes(InOrder(trainers))
    return VirtualNodes(_app_of(trainers), len(trainers))


def _app_of(trainers: Mapping[str, Trainer]) -> ClientApp:
    sites = InOrder(trainers)

    def trainer_of(context: Context) -> Trainer:
        return sites[int(context.node_config["partition-id"])]

    return make_client_app(trainer_of)
