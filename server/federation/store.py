"""The run store's view of a coordinator's runs."""

from __future__ import annotations

from lorica.common.plan import RunPlan
from lorica.server.federation.orders import RunPlace
from lorica.server.records import Observer, Silent


def mark(place: RunPlace, state: str, reason: str) -> None:
    """Tell the run store what became of a run."""


def observer_of(place: RunPlace) -> Observer:
    """What writes a run's progress to the store."""
    return Silent()


def stop_wanted(place: RunPlace) -> bool:
    """Whether somebody asked the store that the run stop."""
    return False


def created(place: RunPlace, plan: RunPlan) -> None:
    """Tell the run store of a new run."""
