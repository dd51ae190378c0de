"""The alerts of a store, looked up at most once in a few seconds however many pages ask."""

from __future__ import annotations

import threading
import time

from lorica.server.reports.alerts import Alert, alerts
from lorica.server.store import RunStore

_KEPT_SECONDS = 2.0


class AlertWatch:
    """What there is to look at, shared by all pages."""

    def __init__(self, store: RunStore) -> None:
        """``store`` is what is watched."""
        self._store = store
        self._lock = threading.Lock()
        self._found: list[Alert] = []
        self._until = 0.0

    def alerts(self) -> list[Alert]:
        """All alerts, critical first; at most two seconds old."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._found = alerts(self._store)
                self._until = time.monotonic() + _KEPT_SECONDS
            return self._found
