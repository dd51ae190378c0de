"""A disk that is running full is told of once, before things fail for want of room."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from lorica.common.errors import Code, LoricaError

LEAST_BYTES = 100_000_000
"""Free space below which it is told."""

_log = logging.getLogger("lorica.disk")


class DiskWatch:
    """Looks at the free space of a folder's disk now and then."""

    def __init__(self, folder: Path, *, least: int = LEAST_BYTES, every: float = 5.0) -> None:
        """
        Args:
            folder: on the disk.
            least: free space that there should be, bytes.
            every: seconds between looks.
        """
        self._folder, self._least, self._every = folder, least, every
        self._next, self._low = 0.0, False

    def look(self) -> None:
        """Log LOR-601 when room has become scarce, and when there is room again; costs nothing
        between looks."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._every
        try:
            free = shutil.disk_usage(self._folder).free
        except OSError:
            return
        if free < self._least and not self._low:
            error = LoricaError(
                Code.STORAGE_FULL,
                f"Only {free / 1e6:.1f} MB are free where {self._folder} is: runs stop when "
                "nothing is left.",
            )
            _log.error("%s %s", error, error.mend)
        elif free >= self._least and self._low:
            _log.info("there is room again where %s is", self._folder)
        self._low = free < self._least
