"""Keep a few programs running: each restarted when it ends, one log each, a clean stop.

A supervisor is itself supervised (systemd, a container's restart policy): when it is killed, the
system sends its programs SIGTERM, so that nothing is left that holds ports and locks.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import IO

from lorica.common.errors import Code, LoricaError

LOG_BYTES, LOG_FILES = 10_000_000, 5
_SHORTEST, _LONGEST = 0.5, 30.0  # seconds between restarts
_STEADY = 60.0  # seconds after which a program counts as running well
_TICK = 0.2
_PR_SET_PDEATHSIG = 1

_log = logging.getLogger("lorica.supervisor")


@dataclass
class Service:
    """A program to keep running."""

    name: str
    command: Sequence[str] | Callable[[], Sequence[str]]
    """The command, or what makes it anew for every start."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's own."""
    grace: float = 10.0
    """Seconds between SIGTERM and SIGKILL."""
    on_line: Callable[[str], None] | None = None
    """Hears every line of its output."""
    before_restart: Callable[[], None] | None = None
    """Called after it ended by itself and before it is started again."""
    longest_wait: float = _LONGEST
    """Longest wait before a restart, seconds."""


class _Running:
    """One service's process, and when to start the next."""

    def __init__(self, service: Service, logs: Path) -> None:
        self.service = service
        self.process: subprocess.Popen[bytes] | None = None
        self.started = self.next_start = 0.0
        self.wait = _SHORTEST
        self.restarts = 0
        handler = RotatingFileHandler(
            logs / f"{service.name}.log", maxBytes=LOG_BYTES, backupCount=LOG_FILES, delay=True
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
        self.log = handler

    def start(self) -> None:
        library = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
        parent = os.getpid()

        def end_with_the_supervisor() -> None:
            if library is not None:
                library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
                if os.getppid() != parent:
                    os._exit(1)

        command = self.service.command
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            list(command() if callable(command) else command),
            env={**os.environ, **self.service.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_the_supervisor,
        )
        assert self.process.stdout is not None
        threading.Thread(target=self._pump, args=(self.process.stdout,), daemon=True).start()

    def _pump(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip("\n")
                with contextlib.suppress(OSError):  # a full disk must not stop the program
                    self.log.emit(logging.makeLogRecord({"msg": line}))
                if self.service.on_line is not None:
                    self.service.on_line(line)

    def signal(self, number: int) -> None:
        """To the program and what it started in its session."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


class Supervisor:
    """Runs services until it is told to stop."""

    def __init__(self, services: Sequence[Service], logs: Path) -> None:
        """
        Args:
            services: started in this order, stopped in the reverse one.
            logs: folder for one log each, rotated; made when absent.
        """
        logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._running = [_Running(service, logs) for service in services]
        self._stop = threading.Event()
        self._reload: Callable[[], None] | None = None

    def stop(self) -> None:
        """Make :meth:`run` end, from any thread."""
        self._stop.set()

    def process_id(self, name: str) -> int | None:
        """Process id of a service that runs now."""
        for running in self._running:
            process = running.process
            if running.service.name == name and process is not None and process.poll() is None:
                return process.pid
        return None

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a service's session, if it runs."""
        for running in self._running:
            if running.service.name == name:
                running.signal(number)

    def restarts(self, name: str) -> int:
        """How often a service was started again."""
        return sum(r.restarts for r in self._running if r.service.name == name)

    def run(
        self,
        *,
        tick: Callable[[], None] | None = None,
        reload: Callable[[], None] | None = None,
    ) -> None:
        """Start everything and keep it running until SIGTERM, SIGINT or :meth:`stop`.

        Args:
            tick: called a few times a second, between looks at the programs; must be quick.
            reload: called on SIGHUP.
        """
        self._reload = reload
        with self._signals():
            try:
                for running in self._running:
                    if self._stop.is_set():
                        break
                    self._start(running)
                while not self._stop.wait(_TICK):
                    for running in self._running:
                        self._look_after(running)
                    if tick is not None:
                        tick()
            finally:
                self._stop_all()

    def _start(self, running: _Running) -> None:
        try:
            running.start()
        except OSError as error:
            raise LoricaError(
                Code.PROGRAM_MISSING,
                f"{running.service.name} cannot be started: {error.filename}: {error.strerror}.",
            ) from error
        assert running.process is not None
        _log.info("%s started, process %s", running.service.name, running.process.pid)

    def _look_after(self, running: _Running) -> None:
        now = time.monotonic()
        process = running.process
        if process is not None:
            status = process.poll()
            if status is None:
                return
            with contextlib.suppress(ProcessLookupError):  # workers that outlived it hold its port
                os.killpg(process.pid, signal.SIGKILL)
            running.process = None
            steady = now - running.started > _STEADY
            running.wait = _SHORTEST if steady else running.wait
            running.next_start = now + running.wait
            _log.warning(
                "%s ended (%s); it starts again in %.1f s",
                running.service.name,
                f"signal {-status}" if status < 0 else f"exit status {status}",
                running.wait,
            )
            running.wait = min(running.wait * 2, running.service.longest_wait)
        elif now >= running.next_start:
            if running.service.before_restart is not None:
                running.service.before_restart()
            running.restarts += 1
            self._start(running)

    def _stop_all(self) -> None:
        for running in reversed(self._running):
            process = running.process
            if process is None:
                continue
            running.signal(signal.SIGTERM)
            try:
                process.wait(running.service.grace)
            except subprocess.TimeoutExpired:
                _log.warning("%s did not end in time and is killed", running.service.name)
                running.signal(signal.SIGKILL)
                process.wait()
            running.log.close()
            _log.info("%s stopped", running.service.name)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            self._stop.set()

        def reload(number: int, frame: FrameType | None) -> None:
            if self._reload is not None:
                self._reload()

        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reload}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
