"""The run store's view of a coordinator's runs. A store that fails stops no run."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import lru_cache

from lorica.common.errors import LoricaError
from lorica.common.machine.home import STORE_VARIABLE
from lorica.common.plan import RunPlan
from lorica.server.coordinator.home import CoordinatorHome
from lorica.server.coordinator.orders import RunPlace
from lorica.server.recording.observer import StoreObserver
from lorica.server.results.observers import Observer, Silent
from lorica.server.store import RunStore
from lorica.server.store.tables import Status

_log = logging.getLogger("lorica.coordinator")


def use_store(home: CoordinatorHome) -> None:
    """Make the coordinator's store that of this process and of what it starts."""
    os.environ[STORE_VARIABLE] = home.store_url


def created(place: RunPlace, plan: RunPlan, by: str) -> None:
    """Enter a new run."""
    with _tolerant(place) as store:
        if store is not None:
            store.create_run(place.run, plan, folder=place.path, submitted_by=by)


def mark(place: RunPlace, status: Status, reason: str, code: str = "") -> None:
    """Note what became of a run."""
    with _tolerant(place) as store:
        if store is not None:
            store.set_status(place.run, status, code=code, error=reason)


def note_flower_run(place: RunPlace, flower_run: int) -> None:
    """Note which Flower run works on a run."""
    with _tolerant(place) as store:
        if store is not None:
            store.add_flower_run(place.run, flower_run)
            if len(place.order().flower_runs) > 1:
                text = f"taken up again from the last whole round, as Flower run {flower_run}"
                store.add_event(place.run, "warning", text)


def ask_to_stop(place: RunPlace, by: str) -> None:
    """Note that an operator wants the run to stop."""
    with _tolerant(place) as store:
        if store is not None:
            store.request_stop(place.run, by=by)


def stop_asked(place: RunPlace) -> bool:
    """Whether somebody asked for it over the store, as its web pages do."""
    with _tolerant(place) as store:
        return store is not None and store.stop_requested(place.run)
    return False


@contextlib.contextmanager
def watching(place: RunPlace) -> Iterator[tuple[Observer, Callable[[], bool]]]:
    """What the round loop tells, written to the store, and whether it should stop."""
    store = None
    with contextlib.suppress(LoricaError):
        store = _store(os.environ.get(STORE_VARIABLE, ""))
    if store is None:
        yield Silent(), lambda: False
        return
    with contextlib.suppress(LoricaError):  # a store that was lost meanwhile learns of the run
        store.create_run(place.run, place.folder.plan(), folder=place.path, status="running")
    with StoreObserver(store, place.run) as observer:
        yield observer, observer.stop_requested


@contextlib.contextmanager
def _tolerant(place: RunPlace) -> Iterator[RunStore | None]:
    try:
        yield _store(os.environ.get(STORE_VARIABLE, ""))
    except LoricaError as error:
        _log.warning("the run store does not know of run %s: %s", place.run, error)


@lru_cache(maxsize=2)
def _store(url: str) -> RunStore | None:
    return RunStore.open_unless_off(url or None)
