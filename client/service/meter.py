"""Measures what answers take, for the site's own report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorica.client.ledger.reports.effort import Taken, note_taken
from lorica.common.machine.effort import Effort


class Meter:
    """Used by the one thread that works. Knows whose an answer was only when it is there."""

    def __init__(self, file: Path, effort: Effort) -> None:
        """
        Args:
            file: where it is kept (:func:`~lorica.client.ledger.reports.effort.effort_file`).
            effort: measures this process, begun.
        """
        self._file, self._effort = file, effort

    @contextmanager
    def answer(self) -> Iterator[Noting]:
        """Around the work on one answer; nothing is noted but what the caller says."""
        noting = Noting()
        at, cpu, joules = time.monotonic(), self._effort.cpu_seconds, self._effort.joules
        yield noting
        if not noting.run:
            return
        after = self._effort.joules
        taken = Taken(
            1,
            time.monotonic() - at,
            self._effort.cpu_seconds - cpu,
            None if joules is None or after is None else after - joules,
        )
        note_taken(self._file, noting.run, taken)


class Noting:
    """Whose answer it was."""

    run = ""
    """Empty: nobody's who is accounted for."""
