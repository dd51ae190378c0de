"""What work costs this machine: processor seconds, and energy where the processor counts it.

Intel and AMD processors count the energy of each package (RAPL), and Linux shows it in
/sys/class/powercap; since 2020 (CVE-2020-8694) to root alone, and in few virtual machines. It is of
the whole machine, whoever worked on it meanwhile.
"""

from __future__ import annotations

import resource
import threading
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_SECONDS = 60.0
"""Between two readings: counters begin anew after a quarter of an hour at the earliest."""


@dataclass
class _Counter:
    """The energy counter of one package, microjoules."""

    file: Path
    last: int
    range: int
    """At which it begins anew; 0: not known."""
    total: int = 0

    def read(self) -> None:
        """Add what was counted since the last reading."""
        now = int(self.file.read_text())
        moved = now - self.last
        if moved < 0:
            moved = moved + self.range if self.range else 0
        self.total, self.last = self.total + moved, now


class Effort:
    """A context manager; its figures are of what was done within, so far."""

    def __init__(self, root: Path = POWERCAP, seconds: float = _SECONDS) -> None:
        """
        Args:
            root: where Linux shows energy counters.
            seconds: between two readings.
        """
        self._root, self._seconds = root, seconds
        self._counters: list[_Counter] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._before = 0.0

    def __enter__(self) -> Effort:
        self._before = _used()
        self._counters = _counters(self._root)
        if self._counters:
            self._thread = threading.Thread(target=self._watch, name="lorica-energy", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds of this process, its threads and the children that have ended."""
        return _used() - self._before

    @property
    def joules(self) -> float | None:
        """Energy of the machine's processors; None where it cannot be read."""
        self._read()
        return sum(counter.total for counter in self._counters) / 1e6 if self._counters else None

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds):
            self._read()

    def _read(self) -> None:
        with self._lock:
            try:
                for counter in self._counters:
                    counter.read()
            except (OSError, ValueError):
                self._counters = []  # what is not known whole is not told


def _counters(root: Path) -> list[_Counter]:
    """Those of whole packages; parts of them (cores, memory) would be counted twice."""
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            if folder.name.count(":") != 1 or not _is_package(folder):
                continue
            whole = folder / "max_energy_range_uj"
            limit = int(whole.read_text()) if whole.exists() else 0
            file = folder / "energy_uj"
            found.append(_Counter(file, int(file.read_text()), limit))
        except (OSError, ValueError):
            return []
    return found


def _is_package(folder: Path) -> bool:
    return (folder / "name").read_text().startswith("package")


def _used() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))
