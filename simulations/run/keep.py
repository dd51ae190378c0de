"""Where simulations are kept: the run store, and the trackers that researchers use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorica.common.plan import RunPlan
from lorica.server.recording.recording import Recording, change, open_softly, recorded
from lorica.server.recording.tracking import track
from lorica.server.results.observers import Observers

if TYPE_CHECKING:
    from lorica.server.recording.spending import CostOf
    from lorica.server.store import RunStore
    from lorica.server.store.tables import Kind


class Keep:
    """Keeps simulations, their baselines and sweeps; by default nowhere."""

    def __init__(
        self,
        store: RunStore | None = None,
        *,
        kind: Kind = "simulation",
        name: str = "",
        parent: str | None = None,
        trackers: Sequence[str] = (),
    ) -> None:
        """
        Args:
            store: the run store; None keeps no run there.
            kind: of the simulation: "simulation" or "sweep-run".
            name: for people.
            parent: run id of the sweep that it belongs to.
            trackers: such as "mlflow:URI" and "tensorboard:DIR".
        """
        self.store, self._kind, self._name = store, kind, name
        self._parent, self._trackers = parent, trackers

    @contextlib.contextmanager
    def run(self, plan: RunPlan, folder: Path, *, cost_of: CostOf) -> Iterator[Recording]:
        """Keep a simulation."""
        name = self._name or folder.name
        with (
            recorded(
                self.store,
                plan,
                folder,
                kind=self._kind,
                name=name,
                parent=self._parent,
                cost_of=cost_of,
            ) as kept,
            track(self._trackers, name, kept.run_id) as trackers,
        ):
            yield Recording(kept.run_id, Observers(kept.observer, *trackers), kept.stop)

    def summary(self, run_id: str, summary: dict[str, Any]) -> None:
        """Keep what summary.json holds."""
        change(self.store, run_id, summary=summary, versions=summary.get("versions", {}))

    @contextlib.contextmanager
    def baseline(self, plan: RunPlan, folder: Path, title: str, parent: str) -> Iterator[Recording]:
        """Keep a baseline of a simulation."""
        store = self.store if parent else None
        with recorded(store, plan, folder, kind="baseline", name=title, parent=parent) as kept:
            yield kept


def store_of(url: str | None, off: bool) -> RunStore | None:
    """The store that options ask for. Raises LOR-801, LOR-802 when ``url`` cannot be used."""
    return None if off else open_softly(url)
