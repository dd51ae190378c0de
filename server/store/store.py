"""The run store: open it, and write what runs do."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from lorica.common.display.text import printable
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.io import to_toml
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.server.store import artefacts, rows, site_rows
from lorica.server.store.connecting import connect
from lorica.server.store.database import NONE, shown, store_errors, store_url
from lorica.server.store.queries import Queries
from lorica.server.store.tables import LIVE, OVER, Event, FlowerRun, Kind, Run, Status

SILENT_SECONDS = 90.0
"""A run is interrupted whose process gave no sign of life for so long."""

_MOST_TEXT = 2000


class RunStore(Queries):
    """A run store. Safe to share between threads; every call is a transaction of its own.

    All methods raise LoricaError LOR-801 when the database cannot be used.
    """

    def __init__(self, engine: Engine) -> None:
        """``engine`` has an up-to-date schema; see :meth:`open`."""
        self.engine = engine

    @classmethod
    def open(cls, url: str | None = None) -> RunStore:
        """Open a store, and create it or bring its schema up to date.

        Args:
            url: of the database; else LORICA_STORE, else SQLite in LORICA_HOME.

        Raises:
            LoricaError: LOR-801 when it cannot be opened or is switched off, LOR-802 when a newer
                Lorica wrote it.
        """
        found = store_url(url)
        if found == NONE:
            raise LoricaError(
                Code.STORE_UNREACHABLE,
                "The run store is switched off.",
                mend="Unset LORICA_STORE, or give the store's URL.",
            )
        return cls(connect(found))

    @classmethod
    def open_unless_off(cls, url: str | None = None) -> RunStore | None:
        """The same; None when the store is switched off by "none"."""
        return None if store_url(url) == NONE else cls.open(url)

    @property
    def url(self) -> str:
        """The store's URL, without its password."""
        return shown(self.engine.url)

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that reads one consistent state."""
        with (
            store_errors(self.engine.url),
            Session(self.engine, expire_on_commit=False) as session,
        ):
            yield session

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose changes are committed together at its end, or not at all."""
        engine = self.engine.execution_options(writing=True)
        with (
            store_errors(self.engine.url),
            Session(engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    # Runs.

    def create_run(
        self,
        run_id: str,
        plan: RunPlan,
        *,
        kind: Kind = "federation",
        status: Status = "queued",
        name: str = "",
        folder: Path | None = None,
        parent: str | None = None,
        submitted_by: str = "",
        created: float | None = None,
    ) -> Run:
        """Enter a new run.

        Args:
            run_id: unique; at most 100 printable characters without "/".
            plan: its plan.
            kind: what it is.
            status: "queued", or "running" for one that starts at once.
            name: for people.
            folder: its results folder.
            parent: run id of the sweep or simulation that it belongs to.
            submitted_by: who asked for it.
            created: when; now when omitted.

        Raises:
            LoricaError: LOR-808 when the id is taken, LOR-740 no such parent.
        """
        if not run_id or len(run_id) > 100 or "/" in run_id or printable(run_id) != run_id:
            raise LoricaError(
                Code.RUN_EXISTS,
                f"{printable(run_id)[:120]!r} cannot be a run's id.",
                mend='Use up to 100 printable characters without "/".',
            )
        private = plan.privacy.private
        run = Run(
            run_id=run_id,
            kind=kind,
            status=status,
            name=printable(name),
            submitted_by=submitted_by,
            created=time.time() if created is None else created,
            folder=str(folder.absolute()) if folder else "",
            fingerprint=plan.fingerprint,
            task=plan.task.kind,
            backbone=plan.backbone.source,
            method=plan.aggregation.method,
            epsilon=plan.privacy.epsilon if private else None,
            delta=plan.privacy.delta,
            unit=plan.privacy.unit,
            rounds=plan.rounds.count,
            plan=to_toml(plan),
        )
        try:
            with self.writing() as session:
                if parent is not None:
                    run.parent_id = self._key(session, parent)
                session.add(run)
                session.flush()
        except LoricaError as error:
            if isinstance(error.__cause__, IntegrityError):
                raise LoricaError(
                    Code.RUN_EXISTS, f"The store has a run {run_id!r} already."
                ) from error
            raise
        return run

    def set_status(self, run_id: str, status: Status, *, code: str = "", error: str = "") -> None:
        """Set a run's status; ``started`` and ``ended`` follow. Raises LOR-740.

        A run that is queued or running (again) is no longer asked to stop.
        """
        now = time.time()
        values: dict[str, Any] = {
            "status": status,
            "error_code": code,
            "error": printable(error)[:_MOST_TEXT],
        }
        if status in ("queued", "running"):
            values |= {"stop_requested": None, "stop_requested_by": "", "ended": None}
        if status in OVER:
            values |= {"ended": now, "answered": 0}
        elif status in LIVE:
            values |= {"ended": None, "heartbeat": now}
        with self.writing() as session:
            key = self._key(session, run_id)
            session.execute(update(Run).where(Run.id == key).values(values))
            if status in LIVE:
                session.execute(
                    update(Run).where(Run.id == key, Run.started.is_(None)).values(started=now)
                )

    def change_run(self, run_id: str, **values: Any) -> None:
        """Set columns of a run, such as folder, name, summary, versions, energy_kwh."""
        with self.writing() as session:
            key = self._key(session, run_id)
            session.execute(update(Run).where(Run.id == key).values(values))

    def add_flower_run(self, run_id: str, flower_id: int | str) -> None:
        """Note that a Flower run works on a run; a resumed run has several."""
        with self.writing() as session:
            key = self._key(session, run_id)
            session.merge(FlowerRun(flower_id=str(flower_id), run_id=key))

    def request_stop(self, run_id: str, *, by: str) -> Status:
        """Ask a run to stop after its last whole round. A queued one is stopped at once.

        Returns:
            The status that it now has: "stopping", or "stopped".

        Raises:
            LoricaError: LOR-740 no such run, LOR-741 when it is over already.
        """
        now = time.time()
        with self.writing() as session:
            run = self._run(session, run_id)
            if run.status in OVER:
                raise LoricaError(
                    Code.RUN_STATE,
                    f"Run {run_id} is {run.status}; only a queued or running run can be stopped.",
                )
            if run.stop_requested is None:
                run.stop_requested, run.stop_requested_by = now, by
                session.add(_event(run.id, "warning", f"stop requested by {by}"))
            run.status = "stopped" if run.status == "queued" else "stopping"
            if run.status == "stopped":
                run.ended = now
            status: Status = run.status  # type: ignore[assignment]
        return status

    def stop_requested(self, run_id: str) -> bool:
        """Whether somebody asked the run to stop."""
        with self.reading() as session:
            found = session.scalar(select(Run.stop_requested).where(Run.run_id == run_id))
        return found is not None

    def beat(self, run_id: str, *, answered: int | None = None) -> bool:
        """A sign of life of the run's process; says whether the run was asked to stop.

        A run that was taken for interrupted (its machine slept) is running again.
        """
        values: dict[str, Any] = {"heartbeat": time.time()}
        if answered is not None:
            values["answered"] = answered
        with self.writing() as session:
            run = self._run(session, run_id)
            if run.status == "interrupted":
                values |= {"status": "stopping" if run.stop_requested else "running", "ended": None}
            session.execute(update(Run).where(Run.id == run.id).values(values))
            return run.stop_requested is not None

    def mark_interrupted(self, now: float | None = None) -> list[str]:
        """Mark live runs whose process is gone; returns their ids.

        On this host a process is looked for; elsewhere :data:`SILENT_SECONDS` without a sign of
        life decide.
        """
        now = time.time() if now is None else now
        with self.reading() as session:
            live = session.scalars(select(Run).where(Run.status.in_(LIVE))).all()
        gone = [run for run in live if _gone(run, now)]
        if not gone:
            return []
        with self.writing() as session:
            for run in gone:
                changed = session.execute(
                    update(Run)
                    .where(Run.id == run.id, Run.status.in_(LIVE), Run.heartbeat == run.heartbeat)
                    .values(status="interrupted", ended=run.heartbeat or now, answered=0)
                )
                if changed.rowcount:  # type: ignore[attr-defined]
                    session.add(_event(run.id, "error", "interrupted: the run's process is gone"))
        return [run.run_id for run in gone]

    # What happens in a run.

    def begin(self, run_id: str, plan: RunPlan, sites: Sequence[SiteRound], first: int) -> None:
        """A run's process has started or resumed it: its sites are known."""
        now = time.time()
        with self.writing() as session:
            run = self._run(session, run_id)
            run.status = "stopping" if run.stop_requested else "running"
            run.ended, run.heartbeat = None, now
            run.started = run.started or now
            run.error_code = run.error = ""
            run.host, run.process = socket.gethostname(), os.getpid()
            run.sites = sum(site.status == "ok" for site in sites)
            run.plan, run.fingerprint = to_toml(plan), plan.fingerprint
            rows.drop_from(session, run, first)
            site_rows.meet_sites(session, run, sites, now)

    def add_rounds(
        self,
        run_id: str,
        records: Sequence[RoundRecord],
        *,
        spent: Mapping[int, Mapping[str, float]] | None = None,
        ended: float | None = None,
        events: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Write whole rounds in one transaction; a round that is there is replaced.

        Args:
            run_id: the run.
            records: in order.
            spent: round -> site -> ε spent after it, as declared.
            ended: when the last of them ended; now when omitted.
            events: columns of events to write with them.
        """
        if not records and not events:
            return
        at = time.time() if ended is None else ended
        with self.writing() as session:
            run = self._run(session, run_id)
            for record in records:
                rows.write_round(session, run, record, (spent or {}).get(record.round, {}), at)
            session.add_all(Event(run_id=run.id, **event) for event in events)

    def add_event(
        self,
        run_id: str | None,
        level: str,
        text: str,
        *,
        code: str = "",
        round: int | None = None,
        site: str | None = None,
    ) -> None:
        """Write a line of a run's log, or without a run of the coordinator's."""
        with self.writing() as session:
            key = None if run_id is None else self._key(session, run_id)
            session.add(_event(key, level, text, code=code, round=round, site=site))

    def note_site(self, name: str, **values: Any) -> None:
        """Note what a site says of itself: version, weight, budget_epsilon, budget_left."""
        with self.writing() as session:
            site_rows.note_site(session, name, values, time.time())

    def add_artefacts(self, run_id: str, folder: Path | None = None) -> None:
        """Enter the files of a run's results folder that are worth fetching."""
        with self.writing() as session:
            run = self._run(session, run_id)
            if folder is not None:
                run.folder = str(folder.absolute())
            artefacts.enter(session, run)


def _event(key: int | None, level: str, text: str, **values: Any) -> Event:
    return Event(run_id=key, level=level, text=printable(text)[:_MOST_TEXT], **values)


def _gone(run: Run, now: float) -> bool:
    if run.process is not None and run.host == socket.gethostname():
        try:
            os.kill(run.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it is there, and another user's
    return now - (run.heartbeat or run.created) > SILENT_SECONDS
