"""One module per task behind one interface: :class:`lorica.common.tasks.base.Task`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lorica.common.plan.traits import TRAITS

if TYPE_CHECKING:
    from lorica.common.plan import RunPlan
    from lorica.common.tasks.base import Task


def task_of(plan: RunPlan) -> Task:
    """The plan's task. Imports torch and the task's module at the first call."""
    traits = TRAITS[plan.task.kind]
    module = importlib.import_module(f"lorica.common.tasks.{traits.module}")
    task: Task = getattr(module, traits.name)(plan)
    return task
