"""The run store: what every run did, now and last month, in SQLite or PostgreSQL.

:class:`RunStore` opens it, :class:`StoreObserver` writes a run into it (:mod:`recording` does both
for whole runs); the tables are in :mod:`models` and :mod:`accounts`.
"""

from __future__ import annotations

from lorica.server.recording.observer import StoreObserver
from lorica.server.store.store import RunStore

__all__ = ["RunStore", "StoreObserver"]
