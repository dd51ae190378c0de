"""The memory of a process and of all that descend from it."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable

import psutil


class Watch(threading.Thread):
    """Looks at a process twice a second until it has ended; starts at once."""

    def __init__(
        self, process: subprocess.Popen[str] | subprocess.Popen[bytes], held: Callable[..., int]
    ) -> None:
        """
        Args:
            process: the first of them.
            held: the bytes that one ``psutil.Process`` holds.
        """
        super().__init__(daemon=True)
        self._process, self._held = process, held
        self.peak = 0
        """Bytes that all of them held together at most."""
        self.start()

    def run(self) -> None:
        """Look."""
        root = psutil.Process(self._process.pid)
        while self._process.poll() is None:
            try:
                family = [root, *root.children(recursive=True)]
                self.peak = max(self.peak, sum(map(self._held, family)))
            except psutil.NoSuchProcess:
                pass  # one of them ended meanwhile: the next look counts
            time.sleep(0.5)
