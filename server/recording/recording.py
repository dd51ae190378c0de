"""Keep a run in the store from its first moment to its last: the one way in which runs do it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.server.recording.energy import measured_energy
from lorica.server.recording.observer import StoreObserver
from lorica.server.results.observers import Observer, Observers
from lorica.server.store.artefacts import CHECKPOINT
from lorica.server.store.store import RunStore
from lorica.server.store.tables import Kind, Run

if TYPE_CHECKING:
    from lorica.server.recording.spending import CostOf

_log = logging.getLogger("lorica.store")


@dataclass(frozen=True)
class Recording:
    """A run that is being kept."""

    run_id: str
    """In the store; empty without one."""
    observer: Observer
    stop: Callable[[], bool]
    """Whether somebody asked the run to stop."""

    def beside(self, observer: Observer) -> Recording:
        """The same with one more observer, which hears of everything first."""
        return replace(self, observer=Observers(observer, self.observer))


def open_softly(url: str | None = None) -> RunStore | None:
    """The store to keep runs in; None when it is switched off.

    A store that was asked for by ``url`` must open. The one that is used by default must not keep
    anybody from running: when it does not open, that is warned about, and there is none.

    Raises:
        LoricaError: LOR-801, LOR-802 when ``url`` is given.
    """
    try:
        return RunStore.open_unless_off(url)
    except LoricaError as error:
        if url:
            raise
        _log.warning("%s The run is not kept in a store. %s", error, error.mend)
        return None


@contextlib.contextmanager
def recorded(
    store: RunStore | None,
    plan: RunPlan,
    folder: Path,
    *,
    kind: Kind,
    run_id: str = "",
    name: str = "",
    parent: str | None = None,
    cost_of: CostOf | None = None,
    observers: Sequence[Observer] = (),
) -> Iterator[Recording]:
    """Keep what happens within in the store, and its energy where the machine tells it.

    A run whose results folder the store knows is gone on with, under its id.

    Args:
        store: None keeps nothing.
        plan: the run's.
        folder: its results folder.
        kind: what it is.
        run_id: of a run that is new to the store; made of the time and the plan when omitted.
        name: for people.
        parent: run id of what it belongs to.
        cost_of: what the run costs at a site, where more is known than the plan.
        observers: that hear of the run, too.
    """
    if store is None:
        yield Recording("", Observers(*observers), lambda: False)
        return
    try:
        found = _entered(store, plan, folder, kind, run_id, name, parent)
    except LoricaError as error:
        _log.warning("%s The run is not kept in a store.", error)
        yield Recording("", Observers(*observers), lambda: False)
        return
    with StoreObserver(store, found, cost_of=cost_of) as observer, measured_energy() as energy:
        yield Recording(found, Observers(*observers, observer), observer.stop_requested)
    if energy.kwh is not None:
        change(store, found, energy_kwh=energy.kwh)


def change(store: RunStore | None, run_id: str, **values: Any) -> None:
    """Set columns of a run; a store that fails is warned about."""
    if store is None or not run_id:
        return
    try:
        store.change_run(run_id, **values)
    except LoricaError as error:
        _log.warning("[%s] %s", Code.STORE_BEHIND.value, error.detail)


def run_of_folder(store: RunStore, folder: Path, fingerprint: str) -> str | None:
    """The newest run of a plan whose results folder this is."""
    here = (Run.folder == str(folder.absolute()), Run.fingerprint == fingerprint)
    with store.reading() as session:
        return session.scalar(select(Run.run_id).where(*here).order_by(Run.id.desc()).limit(1))


def new_run_id(plan: RunPlan, prefix: str = "") -> str:
    """An id that says when and tells plans apart, such as "20260131-142501-3f9a2c"."""
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    return f"{prefix}{stamp}-{plan.fingerprint[:6]}{int(now * 1000) % 1000:03d}"


def _entered(
    store: RunStore,
    plan: RunPlan,
    folder: Path,
    kind: Kind,
    run_id: str,
    name: str,
    parent: str | None,
) -> str:
    known = run_id or run_of_folder(store, folder, plan.fingerprint)
    if known:
        try:
            run = store.run(known)
        except LoricaError as error:
            if error.code is not Code.RUN_UNKNOWN:
                raise
        else:
            goes_on = kind == "sweep" or (folder / CHECKPOINT).exists()
            if goes_on or run.status == "queued":
                store.set_status(known, "running")
                return known
            run_id = ""  # the folder was emptied: another run of the same plan
    found = run_id or new_run_id(plan)
    store.create_run(
        found, plan, kind=kind, status="running", name=name, folder=folder, parent=parent
    )
    store.set_status(found, "running")
    return found
