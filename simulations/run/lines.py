"""What sites in other processes log, sent with their replies and logged where the run is shown."""

from __future__ import annotations

import logging
import logging.handlers

from lorica.common.machine.logs import fields_of


class KeptLines(logging.handlers.QueueHandler):
    """Keeps what is logged, in a form that can be sent."""

    def __init__(self) -> None:
        self.held: list[logging.LogRecord] = []
        super().__init__(None)  # type: ignore[arg-type]

    def take_over(self) -> None:
        """Have all that this process logs, and nobody else."""
        log = logging.getLogger("lorica")
        log.handlers, log.propagate = [self], False

    def enqueue(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        for name, value in fields_of(record).items():
            setattr(record, name, value)
        self.held.append(record)

    def take(self) -> list[logging.LogRecord]:
        """What was kept, which is kept no longer."""
        taken, self.held = self.held, []
        return taken
