"""Run one federation over virtual sites, with either engine."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from lorica.client.answering.endpoint import make_client_app
from lorica.client.answering.protocol import Trainer
from lorica.common.adapter.state import State
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.simulations.run.direct import DirectInProcessGrid, DirectNodes
from lorica.simulations.run.grid import InProcessGrid
from lorica.simulations.run.nodes import LocalGrid, VirtualNodes
from lorica.simulations.run.virtual import InOrder
from lorica.simulations.run.workers import Nodes, SiteWorkers

Main = Callable[[Grid], State]
"""The coordinator's side: runs all rounds over a grid and returns the final state."""


def run_in_process(
    main: Main,
    trainers: Mapping[str, Trainer],
    workers: SiteWorkers | None = None,
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


class _Stoppable(LocalGrid):
    """A grid whose next poll ends the coordinator's thread once ``stop`` is set."""

    def __init__(self, grid: Grid, stop: threading.Event) -> None:
        self._grid, self._stop = grid, stop

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self._stop.is_set():
            raise KeyboardInterrupt
        return self._grid.pull_messages(message_ids)


def run_on_ray(main: Main, sites: int, environment: Mapping[str, str]) -> State:
    """Run the same apps on Flower's simulation engine: workers in processes of their own.

    Args:
        main: the coordinator's side.
        sites: number of virtual sites.
        environment: environment variables for the workers.

    Raises:
        LoricaError: LOR-207 without Ray, LOR-506 when the engine fails, and whatever ``main``
            raises.
    """
    try:
        import ray  # noqa: F401
    except ImportError:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            'simulation.engine = "ray" needs Ray.',
            mend="pip install 'lorica[simulation]', or use engine = \"in-process\".",
        ) from None
    os.environ.update(environment)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from flwr.simulation import run_simulation

    from lorica.client.app import app as client_app

    logging.getLogger("flwr").setLevel(logging.ERROR)
    outcome: list[State] = []
    failure: list[BaseException] = []
    stop = threading.Event()
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        try:
            outcome.append(main(_Stoppable(grid, stop)))
        except BaseException as error:  # noqa: BLE001 - carried to the calling thread
            failure.append(error)

    try:
        run_simulation(
            server_app,
            client_app,
            num_supernodes=sites,
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )
    except KeyboardInterrupt:
        stop.set()
        raise
    except RuntimeError as error:
        if not failure:
            raise LoricaError(Code.ENGINE_FAILED, f"Flower's engine ended: {error}") from error
    if failure:
        raise failure[0]
    if not outcome:
        raise LoricaError(Code.ENGINE_FAILED, "Flower's engine ended before the run did.")
    return outcome[0]
