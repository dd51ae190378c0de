"""The ServerApp: from Flower's run config to a finished adapter in a folder."""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.serverapp import Grid

from lorica.common.adapter.state import State
from lorica.common.backbone.loading import backbone_of
from lorica.common.data.records import Records
from lorica.common.plan import RunPlan
from lorica.common.plan.lora import lora_sentence
from lorica.common.saved.folder import save_adapter
from lorica.common.tasks import task_of
from lorica.common.tasks.run_data import (
    judge_data,
    label_sources,
    load_data,
    test_data,
    with_labels,
)
from lorica.common.wire.signing import key_from_environment
from lorica.server.results.folder import ADAPTER, RunFolder
from lorica.server.results.observers import Observer, Silent
from lorica.server.rounds.evaluation import CentralEvaluator
from lorica.server.rounds.known import MOST_UNITS, Directory
from lorica.server.rounds.loop import RoundLoop

_log = logging.getLogger("lorica.coordinator")

FOLDER_VARIABLE = "LORICA_RUN_FOLDER"
"""Environment variable: where a run started by ``flwr run`` writes its results."""


def run_plan(
    grid: Grid,
    plan: RunPlan,
    folder: RunFolder,
    *,
    run: str,
    observer: Observer | None = None,
    stop: Callable[[], bool] = lambda: False,
    resume: bool = False,
    directory: Directory | None = None,
    most_units: int = MOST_UNITS,
) -> State:
    """Run a plan over a grid, with the data the coordinator has, and save the adapter.

    Requests are signed with the key whose path is in the environment variable
    LORICA_COORDINATOR_KEY, if it is set. When the plan names none of its task's labels they are
    read from data.train, which must then be readable here (as it is in a simulation).

    Args:
        grid: reaches the sites.
        plan: the run.
        folder: where results go; with ``resume`` it holds the run's last whole round.
        run: Lorica's run id.
        observer: hears of progress.
        stop: whether an operator wants the run to end.
        resume: go on in a folder that was created before.
        directory: binds nodes to registered sites; None takes sites' word for their names.
        most_units: a site that declares more units takes no part.
    """
    key = key_from_environment()
    test: Records | None = None
    if plan.task.lacks_labels:
        data = load_data(plan)
        plan, test = with_labels(plan, *label_sources(plan, data)), data.test
    elif plan.data.test:
        test = test_data(plan)
    judge = judge_data(plan)
    if not resume:
        folder.create(plan)
    _log.info("%s", lora_sentence(plan))
    backbone = backbone_of(plan)
    loop = RoundLoop(
        grid,
        plan,
        folder,
        run=run,
        start=lambda: task_of(plan).start(backbone),
        evaluate=CentralEvaluator(plan, backbone, test) if test else None,
        observer=observer or Silent(),
        key=key,
        wait_seconds=plan.rounds.timeout_seconds,
        stop=stop,
        judge=CentralEvaluator(plan, backbone, judge) if judge else None,
        directory=directory,
        most_units=most_units,
    )
    state = loop.run()
    save_adapter(folder.path / ADAPTER, state, plan, backbone, folder.results())
    return state
