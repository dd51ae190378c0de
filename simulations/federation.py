"""Run one federation over virtual sites, with either engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from lorica.client.endpoint import make_client_app
from lorica.client.trainers import Trainer
from lorica.common.adapters import State
from lorica.common.errors import Code, LoricaError
from lorica.simulations.grid import InProcessGrid

Main = Callable[[Grid], State]
"""The coordinator's side: runs all rounds over a grid and returns the final state."""


def run_in_process(main: Main, trainers: Mapping[str, Trainer]) -> State:
    """Run with sites called one after another in this process."""
    sites = list(trainers.values())

    def trainer_of(context: Context) -> Trainer:
        return sites[int(context.node_config["partition-id"])]

    return main(InProcessGrid(make_client_app(trainer_of), len(sites)))


def run_on_ray(main: Main, sites: int) -> State:
    """Run the same apps on Flower's simulation engine: workers in processes of their own.

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
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from flwr.simulation import run_simulation

    from lorica.client.app import app as client_app

    logging.getLogger("flwr").setLevel(logging.ERROR)
    outcome: list[State] = []
    failure: list[BaseException] = []
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        try:
            outcome.append(main(grid))
        except BaseException as error:  # noqa: BLE001 - carried to the calling thread
            failure.append(error)

    try:
        run_simulation(
            server_app,
            client_app,
            num_supernodes=sites,
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )
    except RuntimeError as error:
        if not failure:
            raise LoricaError(Code.ENGINE_FAILED, f"Flower's engine ended: {error}") from error
    if failure:
        raise failure[0]
    if not outcome:
        raise LoricaError(Code.ENGINE_FAILED, "Flower's engine ended before the run did.")
    return outcome[0]
