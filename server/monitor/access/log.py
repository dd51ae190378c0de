"""The audit log: who did what at the monitor, and what was refused."""

from __future__ import annotations

from sqlalchemy import func, select

from lorica.common.display.text import printable
from lorica.server.store import RunStore
from lorica.server.store.account_tables import AuditEntry

_MOST_TEXT = 200


class AuditLog:
    """Appends and reads; nothing here changes or removes an entry."""

    def __init__(self, store: RunStore) -> None:
        """``store`` keeps it."""
        self._store = store

    def add(
        self, who: str, action: str, subject: str = "", *, detail: str = "", address: str = ""
    ) -> None:
        """Note that ``who`` did ``action``; texts are made printable and cut to fit."""
        entry = AuditEntry(
            who=printable(who)[:_MOST_TEXT],
            action=action,
            subject=printable(subject)[:_MOST_TEXT],
            detail=printable(detail)[:_MOST_TEXT],
            address=printable(address)[:64],
        )
        with self._store.writing() as session:
            session.add(entry)

    def page(self, number: int, size: int) -> tuple[list[AuditEntry], int]:
        """Entries of one page, the newest first, and how many there are in all."""
        skipped = max(number - 1, 0) * size
        with self._store.reading() as session:
            total = session.scalar(select(func.count()).select_from(AuditEntry)) or 0
            newest = select(AuditEntry).order_by(AuditEntry.id.desc())
            return list(session.scalars(newest.limit(size).offset(skipped))), total
