"""The ServerApp's work on a submitted run: one at a time, from its last whole round."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from flwr.serverapp import Grid

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.lock import only_one
from lorica.server.coordinator.directory import RegisterDirectory
from lorica.server.coordinator.home import HOME_VARIABLE, CoordinatorHome
from lorica.server.coordinator.noting import watching
from lorica.server.coordinator.orders import LOCK, RunPlace
from lorica.server.coordinator.register import Register
from lorica.server.rounds.run import run_plan

_LOCK_SECONDS = 60.0
_log = logging.getLogger("lorica.coordinator")


def serve_run(grid: Grid, run: str, flower_run: int) -> None:
    """Work on a submitted run until it is over.

    A coded error ends the run; any other is a crash, after which the keeper takes it up again.

    Raises:
        LoricaError: what ended the run; LOR-725 another ServerApp works on it.
    """
    home = CoordinatorHome(Path(os.environ[HOME_VARIABLE]))
    place = RunPlace(home.runs, run)
    with only_one(place.path / LOCK, f"A ServerApp of run {run}", wait=_LOCK_SECONDS):
        order = place.order()
        if order.over or flower_run in order.flower_runs[:-1]:
            _log.info("run %s: Flower run %d is not needed any more", run, flower_run)
            return
        place.change(state="running")
        plan = place.folder.plan()
        try:
            with watching(place) as (observer, stop_asked):
                run_plan(
                    grid,
                    plan,
                    place.folder,
                    run=run,
                    observer=observer,
                    stop=_stop(place, stop_asked),
                    resume=True,
                    directory=RegisterDirectory(grid, Register(home.register)),
                    most_units=home.config().most_units,
                )
        except LoricaError as error:
            stopped = error.code is Code.RUN_STOPPED
            state = "stopped" if stopped else "failed"
            place.change(wanted="nothing", state=state, reason=str(error))
            if stopped:
                return
            raise
        place.change(wanted="nothing", state="finished", reason="")


def _stop(place: RunPlace, asked: Callable[[], bool]) -> Callable[[], bool]:
    """Whether an operator wants the run to end; looked at about once a second."""
    looked = [0.0, False]

    def stop() -> bool:
        if time.monotonic() - looked[0] > 1.0:
            looked[:] = time.monotonic(), place.order().wanted == "stop"
        return bool(looked[1]) or asked()

    return stop
