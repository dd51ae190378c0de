"""Submitting, stopping and resuming runs: what the ``lorica run`` commands do."""

from __future__ import annotations

import getpass
import re
import secrets
from datetime import UTC, datetime

from lorica.common.backbone.files import settled_source
from lorica.common.backbone.loading import backbone_of
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks.run_data import test_data
from lorica.server.coordinator.home import CoordinatorHome
from lorica.server.coordinator.noting import ask_to_stop, created, mark, use_store
from lorica.server.coordinator.orders import Order, RunPlace, new_order

_RUN_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")


def submit(home: CoordinatorHome, plan: RunPlan, *, run: str = "") -> RunPlace:
    """Put a run into the queue; the services start it within seconds, or when they start.

    Everything that would stop it before its first round is found now: labels, backbone, test
    data.

    Args:
        home: the coordinator's.
        plan: must name its labels, where its task has any: the coordinator has no training data
            to read them from.
        run: the id; made from the time when empty.

    Raises:
        LoricaError: LOR-307 no labels, LOR-20x backbone, LOR-30x test data, LOR-603 the id is
            taken, LOR-740 it can be no id, LOR-723 no coordinator here.
    """
    use_store(home)
    run = run or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if not _RUN_ID.fullmatch(run):
        raise LoricaError(
            Code.RUN_UNKNOWN,
            f"{run!r:.80} can be no run's id.",
            mend="Use letters, digits, '.', '_' and '-', at most 63 of them.",
        )
    if plan.task.lacks_labels:
        raise LoricaError(
            Code.DATA_TOO_FEW_LABELS,
            "task.labels names no labels, and a coordinator has no training data to read them "
            "from.",
            mend='List them in the plan: [task] labels = ["…", "…"], the same at every site.',
        )
    # The services run in another folder than the command.
    plan = plan.model_copy(update={"backbone": settled_source(plan.backbone)})
    backbone_of(plan)
    if plan.data.test:
        test_data(plan)
    place = RunPlace(home.runs, run)
    place.folder.create(plan)
    place.path.chmod(0o700)
    by = getpass.getuser()
    created(place, plan, by)
    place.write(new_order(run, by))
    return place


def stop(place: RunPlace) -> Order:
    """Have a run end now: the round in hand is given up, its last whole round is kept.

    Raises:
        LoricaError: LOR-741 it is over already.
    """
    order = place.order()
    if order.over:
        raise LoricaError(Code.RUN_STATE, f"Run {order.run} is {order.state} already.")
    ask_to_stop(place, getpass.getuser())
    return place.change(wanted="stop", state="stopping")


def resume(place: RunPlace) -> Order:
    """Put a run that stopped or failed back into the queue, from its last whole round.

    Raises:
        LoricaError: LOR-741 it is not over, or all its rounds are done; LOR-604 its checkpoint is
            damaged.
    """
    order = place.order()
    if not order.over:
        raise LoricaError(
            Code.RUN_STATE,
            f"Run {order.run} is {order.state}: it goes on by itself while `lorica coordinator "
            "start` runs.",
        )
    if order.state == "finished":
        raise LoricaError(Code.RUN_STATE, f"All rounds of run {order.run} are done.")
    place.folder.checkpoint(place.folder.plan())
    mark(place, "queued", "")
    return place.change(wanted="run", state="queued", reason="", fruitless=0, flower_runs=[])
