"""Writes a run into the store while it runs, without ever holding it up.

The round loop hands over whole rounds; a thread of the observer's own writes them, one
transaction each, beats the run's heart and looks whether somebody asked it to stop. A store that
fails (its disk is full, its database gone) is warned about once; rounds wait in memory, the
results folder has them anyway, and the store catches up when it comes back.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lorica.common.display.text import printable
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.logs import fields_of
from lorica.common.plan import RunPlan
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.server.store.store import RunStore
from lorica.server.store.tables import Status

if TYPE_CHECKING:
    from lorica.server.recording.spending import CostOf, Spending

_BEAT_SECONDS = 5.0
_POLL_SECONDS = 1.0
_RETRY_SECONDS = 15.0
_CLOSE_SECONDS = 30.0
_MOST_EVENTS = 10_000

_log = logging.getLogger("lorica.store")


@dataclass
class _Backlog:
    """What has not been written yet, in order."""

    begin: tuple[RunPlan, list[SiteRound], int] | None = None
    records: list[tuple[RoundRecord, float]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.begin or self.records or self.events)


class StoreObserver:
    """An observer that keeps a run in the store; a context manager around the run.

    At its end the run's status says how it went: "finished", "stopped" (LOR-743), "failed" with
    the error's code and sentence, "interrupted" (Ctrl-C). :meth:`stop_requested` is what the
    round loop polls.
    """

    def __init__(self, store: RunStore, run_id: str, *, cost_of: CostOf | None = None) -> None:
        """
        Args:
            store: where to write.
            run_id: of a run that the store has, see :meth:`RunStore.create_run`.
            cost_of: what the run costs at a site, where more is known than the plan says.
        """
        self._store, self._run, self._cost_of = store, run_id, cost_of
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stop, self._closing, self._idle = (
            threading.Event(),
            threading.Event(),
            threading.Event(),
        )
        self._backlog = _Backlog()
        self._spending: Spending | None = None
        self._spent: dict[int, dict[str, float]] = {}
        self._answered = self._told_answered = 0
        self._behind = False
        self._failed_at = -_RETRY_SECONDS
        self._beaten_at = 0.0
        self._handler = _LogLines(self._queue)
        self._thread = threading.Thread(target=self._write, name="lorica-store", daemon=True)

    def stop_requested(self) -> bool:
        """Whether somebody asked the run to stop, as of at most a second ago; costs nothing."""
        return self._stop.is_set()

    def __enter__(self) -> StoreObserver:
        logging.getLogger("lorica").addHandler(self._handler)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        logging.getLogger("lorica").removeHandler(self._handler)
        self._closing.set()
        self._queue.put(None)
        self._thread.join(_CLOSE_SECONDS)
        status, code, text = _outcome(error)
        try:
            self._store.set_status(self._run, status, code=code, error=text)
            self._store.add_artefacts(self._run)
        except LoricaError as problem:
            self._warn(problem)

    # What the round loop says; nothing here waits for the database.

    def started(self, plan: RunPlan, sites: list[SiteRound], first_round: int) -> None:
        """Note the sites; a resumed run's rounds from ``first_round`` on are written anew."""
        self._queue.put(("begin", (plan, list(sites), first_round)))

    def site_answered(self, round: int, site: SiteRound) -> None:
        """Count one answer; it is written with the next sign of life."""
        self._answered += 1

    def round_ended(self, record: RoundRecord) -> None:
        """Hand over a whole round."""
        self._answered = 0
        self._queue.put(("round", (record, time.time())))

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until all that was said is written; False when the store does not take it."""
        self._idle.clear()
        self._queue.put(("flush", None))
        return self._idle.wait(timeout) and not self._behind

    # The writing thread.

    def _write(self) -> None:
        while True:
            try:
                said = self._queue.get(timeout=_POLL_SECONDS)
                self._take(said)
                while not self._queue.empty():
                    said = self._queue.get()
                    self._take(said)
                flushing = self._flushing
            except queue.Empty:
                flushing = False
            closing = self._closing.is_set()
            now = time.monotonic()
            if not self._behind or closing or flushing or now - self._failed_at > _RETRY_SECONDS:
                self._try_all(closing)
            if flushing:
                self._flushing = False
                self._idle.set()
            if closing and self._queue.empty():
                return

    _flushing = False

    def _take(self, said: Any) -> None:
        if said is None:
            return
        what, content = said
        if what == "begin":
            self._backlog.begin = content
            from lorica.server.recording.spending import Spending

            self._spending = Spending(content[0], self._cost_of)
            self._spending.meet(content[1])
            self._recall(content[2])
        elif what == "round":
            record, at = content
            if self._spending is not None:
                self._spent[record.round] = self._spending.after(record)
            self._backlog.records.append((record, at))
        elif what == "event":
            if len(self._backlog.events) < _MOST_EVENTS:
                self._backlog.events.append(content)
        else:
            self._flushing = True

    def _recall(self, first: int) -> None:
        """A resumed run: the rounds before it count towards what sites have spent."""
        if first <= 1 or self._spending is None:
            return
        try:
            cells = self._store.site_cells(self._run)
        except LoricaError:
            return
        by_round: dict[int, list[SiteRound]] = {}
        for cell in cells:
            if cell.round < first:
                entry = SiteRound(cell.site, "ok")
                by_round.setdefault(cell.round, []).append(entry)
        for round, sites in sorted(by_round.items()):
            self._spending.skip(RoundRecord(round, sites))

    def _try_all(self, closing: bool) -> None:
        try:
            self._write_backlog()
            now = time.monotonic()
            changed = self._answered != self._told_answered
            if not closing and (now - self._beaten_at > _BEAT_SECONDS or changed):
                self._told_answered, self._beaten_at = self._answered, now
                stop = self._store.beat(self._run, answered=self._told_answered)
            else:
                stop = self._store.stop_requested(self._run)
            if stop:
                self._stop.set()
        except LoricaError as error:
            self._failed_at = time.monotonic()
            self._warn(error)
            return
        except Exception as error:  # noqa: BLE001 - a store's fault must not end the run's record
            self._failed_at = time.monotonic()
            self._warn(LoricaError(Code.STORE_UNREACHABLE, f"{type(error).__name__}: {error}"))
            return
        if self._behind:
            self._behind = False
            _log.warning("The run store is back and has caught up with run %s.", self._run)

    def _write_backlog(self) -> None:
        backlog = self._backlog
        if not backlog:
            return
        if backlog.begin:
            self._store.begin(self._run, *backlog.begin)
            backlog.begin = None
        while backlog.records:
            record, at = backlog.records[0]
            self._store.add_rounds(
                self._run, [record], spent=self._spent, ended=at, events=backlog.events
            )
            backlog.events = []
            self._spent.pop(record.round, None)
            del backlog.records[0]
        if backlog.events:
            self._store.add_rounds(self._run, [], events=backlog.events)
            backlog.events = []

    def _warn(self, error: LoricaError) -> None:
        if not self._behind:
            self._behind = True
            _log.warning(
                "[%s] %s The run goes on; its results folder has everything, and the store "
                "catches up when it comes back, or by `lorica runs import FOLDER`.",
                Code.STORE_BEHIND.value,
                error.detail,
            )


class _LogLines(logging.Handler):
    """Turns the coordinator's log lines, from "info" up, into events of the run."""

    def __init__(self, said: queue.SimpleQueue[Any]) -> None:
        super().__init__(logging.INFO)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == _log.name:
            return  # the store's own troubles
        text = printable(record.getMessage())[:2000]
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        code = text[1:8] if text.startswith("[LOR-") else ""
        event = {"at": record.created, "level": level, "code": code, "text": text}
        fields = fields_of(record)
        event |= {"round": fields.get("round"), "site": fields.get("site")}
        self._said.put(("event", event))


def _outcome(error: BaseException | None) -> tuple[Status, str, str]:
    if error is None:
        return "finished", "", ""
    if isinstance(error, LoricaError):
        status: Status = "stopped" if error.code is Code.RUN_STOPPED else "failed"
        return status, error.code.value, error.detail
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted", "", "ended from outside"
    return "failed", Code.UNEXPECTED.value, f"{type(error).__name__}: {error}"
