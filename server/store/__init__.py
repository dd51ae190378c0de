"""The run store: what every run did, now and last month, in SQLite or PostgreSQL.

:class:`RunStore` opens it; :mod:`lorica.server.recording` writes runs into it. The tables are in
:mod:`tables` and :mod:`account_tables`.
"""

from __future__ import annotations

from lorica.server.store.store import RunStore

__all__ = ["RunStore"]
