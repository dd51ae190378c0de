"""The memory of a process and of all that descend from it.

PSS: a page that a process shares with those that were split from it counts once in all. Where the
system does not tell it, RSS, in which it counts for each.
"""

from __future__ import annotations

import subprocess
import threading
import time

import psutil


class Watch(threading.Thread):
    """Looks at a process twice a second until it has ended; starts at once."""

    def __init__(self, process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
        """``process``: the first of them."""
        super().__init__(daemon=True)
        self._process = process
        self.peak = 0
        """Bytes that all of them held together at most."""
        self.start()

    def run(self) -> None:
        """Look."""
        root = psutil.Process(self._process.pid)
        while self._process.poll() is None:
            try:
                family = [root, *root.children(recursive=True)]
                self.peak = max(self.peak, sum(map(_held, family)))
            except psutil.NoSuchProcess:
                pass  # one of them ended meanwhile: the next look counts
            time.sleep(0.5)


def _held(one: psutil.Process) -> int:
    full = one.memory_full_info()
    return int(getattr(full, "pss", full.rss))
