"""What every question to the store begins with: a session, and the run that is asked about."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from lorica.common.errors import Code, LoricaError
from lorica.server.store.tables import Run

Item = TypeVar("Item")
Cursor = tuple[float, int]
"""Where a page ended: (time, id) of its last row."""


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some rows of a list, newest first, and where the next page begins."""

    items: list[Item]
    next: Cursor | None
    """To be given as ``after``; None on the last page."""


class Reader:
    """Base of the store's questions."""

    def reading(self) -> AbstractContextManager[Session]:
        """A session that reads one consistent state."""
        raise NotImplementedError

    @staticmethod
    def _run(session: Session, run_id: str, *options: Any) -> Run:
        found = session.scalar(select(Run).where(Run.run_id == run_id).options(*options))
        if found is None:
            raise LoricaError(Code.RUN_UNKNOWN, f"The store has no run {run_id!r}.")
        return found

    @staticmethod
    def _key(session: Session, run_id: str) -> int:
        found = session.scalar(select(Run.id).where(Run.run_id == run_id))
        if found is None:
            raise LoricaError(Code.RUN_UNKNOWN, f"The store has no run {run_id!r}.")
        return found
