"""What changed in the store since the last look."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_, select

from lorica.server.monitor.feed.watch import AlertWatch
from lorica.server.monitor.shown.shapes import (
    EventShape,
    RunShape,
    round_shape,
    run_shape,
    run_site_shapes,
)
from lorica.server.store import RunStore
from lorica.server.store.tables import Event, Run

ALL = ""
"""The topic of every run's state and of alerts; other topics are run ids."""

_OVERLAP_SECONDS = 10.0  # runs made so recently are looked at, however short they were
_MOST_RUNS = 500
_MOST_LINES = 200

Render = Callable[..., dict[str, str]]
"""Draws the parts of pages that change: (run, sites or None) -> name of the part -> HTML."""


@dataclass(frozen=True)
class News:
    """One thing that happened."""

    topic: str
    kind: str
    content: Any


class Reader:
    """Looks at the store and remembers what it has told. Used by one thread at a time."""

    def __init__(self, store: RunStore, render: Render, watch: AlertWatch) -> None:
        """``render`` draws what pages show of a run."""
        self._store, self._render, self._watch = store, render, watch
        self.forget()

    def forget(self) -> None:
        """Begin anew: pages that open bring their own state, and need only what comes after."""
        self._runs: dict[str, RunShape] = {}
        self._rounds: dict[str, int] = {}
        self._event: int | None = None
        self._alerts: int | None = None
        self._first = True

    def look(self, topics: Collection[str]) -> list[News]:
        """Everything new about ``topics``; the first look only takes stock."""
        changed = self._changed_runs(topics)
        news = []
        for run in changed:
            if not self._first:
                news.append(News(ALL, "run", self._drawn(run)))
            if run.run_id in topics:
                news += self._of_run(run)
        news += self._new_lines(topics)
        news += self._alert_count(topics)
        self._first = False
        return news

    def _changed_runs(self, topics: Collection[str]) -> list[RunShape]:
        """Runs that are new or not as they were: of those that can change, or are looked at."""
        known = list(self._runs)
        wanted = or_(
            Run.status.in_(("queued", "running", "stopping")),
            Run.created > time.time() - _OVERLAP_SECONDS,
            Run.run_id.in_({*known, *topics} - {ALL}),
        )
        query = select(Run).where(wanted).order_by(Run.created.desc()).limit(_MOST_RUNS)
        with self._store.reading() as session:
            found = [run_shape(run) for run in session.scalars(query)]
        changed = [run for run in found if not _same(self._runs.get(run.run_id), run)]
        self._runs = {
            run.run_id: run
            for run in found
            if run.live
            or run.status == "queued"
            or run.run_id in topics
            or run.created > time.time() - 2 * _OVERLAP_SECONDS
        }
        return changed

    def _of_run(self, run: RunShape) -> list[News]:
        """The run's state with all its parts, and its new rounds."""
        found = self._store.run_sites(run.run_id)
        news = [News(run.run_id, "run", self._drawn(run, run_site_shapes(found)))]
        told = self._rounds.get(run.run_id)
        rounds = self._store.rounds(run.run_id, after=-1 if told is None else told)
        if told is None and rounds:
            rounds = rounds[-1:]  # pages fetch what was before; the overlap closes the gap
        cells: dict[int, dict[str, list[Any]]] = defaultdict(dict)
        if rounds:
            for cell in self._store.site_cells(run.run_id, after=rounds[0].round - 1):
                shown = [cell.status[0], cell.update_norm, cell.agreement]
                cells[cell.round][cell.site] = shown
        for row in rounds:
            content = round_shape(row).model_dump() | {"cells": cells[row.round]}
            news.append(News(run.run_id, "round", content))
        if rounds:
            self._rounds[run.run_id] = rounds[-1].round
        elif told is not None and run.rounds_done < told:
            self._rounds[run.run_id] = run.rounds_done  # resumed from an earlier round
        return news

    def _new_lines(self, topics: Collection[str]) -> list[News]:
        query = select(Event, Run.run_id).join(Run, Run.id == Event.run_id)
        with self._store.reading() as session:
            if self._event is None:
                self._event = session.scalar(select(func.max(Event.id))) or 0
                return []
            newer = query.where(Event.id > self._event).order_by(Event.id).limit(_MOST_LINES)
            found = session.execute(newer).all()
        if found:
            self._event = found[-1][0].id
        return [
            News(run, "line", EventShape.model_validate(event).model_dump())
            for event, run in found
            if run in topics
        ]

    def _alert_count(self, topics: Collection[str]) -> list[News]:
        count = len(self._watch.alerts())
        if count == self._alerts:
            return []
        self._alerts = count
        return [News(topic, "alerts", {"open": count}) for topic in {ALL, *topics}]

    def _drawn(self, run: RunShape, sites: Any = None) -> dict[str, Any]:
        return run.model_dump() | {"live": run.live, "html": self._render(run, sites)}


def _same(before: RunShape | None, now: RunShape) -> bool:
    """Whether nothing that is shown changed; a sign of life alone is no news."""
    return before is not None and before.model_copy(update={"heartbeat": now.heartbeat}) == now
