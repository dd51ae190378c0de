"""A ledger opened: in a file, or for one process's lifetime."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorica.client.ledger import chain
from lorica.client.ledger.anchor import anchor_path, check_not_removed
from lorica.client.ledger.blocks import BlockFile, cache_path
from lorica.client.ledger.book import Book, Clock
from lorica.client.ledger.charge import Budgets
from lorica.client.ledger.history import VERSION, History
from lorica.client.ledger.in_memory import MemoryStore, Replies
from lorica.client.ledger.ledger import Ledger
from lorica.client.ledger.limits import Limits
from lorica.client.ledger.store import Store
from lorica.common.errors import Code, LoricaError


def _now() -> datetime:
    return datetime.now(UTC)


def require_guarantee(history: History, data_set: str, unit: str, delta: float) -> None:
    """Return if a chain was opened for this data set, unit of privacy and δ.

    Raises:
        LoricaError: LOR-615 it was opened for another.
    """
    have, want = (history.data_set, history.unit, history.delta), (data_set, unit, delta)
    if have != want:
        raise LoricaError(
            Code.LEDGER_MISMATCH,
            f"The ledger is of data set, unit and delta {have}, the site's are {want}.",
        )


class FileLedger(Ledger):
    """The ledger of a site's data set, in a file; any number of processes may open it."""

    def __init__(
        self,
        path: Path,
        *,
        data_set: str,
        unit: str,
        delta: float,
        budgets: Budgets,
        create: bool = False,
        timeout: float = 30.0,
        clock: Clock = _now,
    ) -> None:
        """Open a ledger and check it whole.

        Args:
            path: its SQLite file, on a local disk; the anchor and a cache lie beside it.
            data_set: name of the data set.
            unit: unit of privacy, "record" or whatever the site's policy protects.
            delta: δ at which ε is composed, in (0, 1).
            budgets: what the site's policy allows; a change is written into the chain.
            create: make the ledger when it is absent. Only for a data set never used before.
            timeout: longest wait for another process's lock, seconds.
            clock: gives the current time.

        Raises:
            LoricaError: LOR-614 no ledger there, LOR-615 it is of another data set, unit or δ,
                LOR-612 damaged, LOR-613 older than its anchor, LOR-611 locked, LOR-60x.
        """
        anchor = anchor_path(path)
        check_not_removed(path, anchor)
        book = Book(Store(path, create=create, timeout=timeout), anchor, clock)
        super().__init__(book, Limits(BlockFile(cache_path(path))), budgets)
        try:
            with book.reading():  # a long chain is checked before the write lock is taken
                pass
            self._begin(data_set, unit, delta, create=create)
        except BaseException:
            self.close()
            raise

    def _begin(self, data_set: str, unit: str, delta: float, *, create: bool) -> None:
        book = self._book
        with book.writing() as history:
            book.tidy()
            if not history.count:
                if not create:
                    raise LoricaError(
                        Code.LEDGER_MISSING, f"{book.store.path} holds no privacy ledger."
                    )
                book.append(chain.OPEN, _opening(data_set, unit, delta, self.budgets))
        book.anchor()
        require_guarantee(book.history, data_set, unit, delta)
        if book.history.budgets[-1][1] != self.budgets:
            with book.writing():
                book.append(chain.BUDGETS, {"budgets": self.budgets.as_json()})
            book.anchor()


class MemoryLedger(Ledger):
    """The same ledger for as long as the process lives: for simulations and tests."""

    def __init__(
        self,
        delta: float,
        *,
        unit: str = "record",
        data_set: str = "simulation",
        budgets: Budgets | None = None,
        clock: Clock = _now,
        replies: Replies | None = None,
    ) -> None:
        """As :class:`FileLedger`; without budgets the plan's own is the only limit, and with
        ``replies`` the process's ledgers keep so much of them together."""
        book = Book(MemoryStore(replies), None, clock)
        super().__init__(book, Limits(None), budgets or Budgets.unlimited())
        with book.writing():
            book.append(chain.OPEN, _opening(data_set, unit, delta, self.budgets))


def _opening(data_set: str, unit: str, delta: float, budgets: Budgets) -> dict[str, Any]:
    """Fields of a chain's first entry."""
    if not 0 < delta < 1:
        raise LoricaError(Code.PRIVACY_DELTA, f"A ledger's delta must be in (0, 1), got {delta}.")
    return {
        "version": VERSION,
        "ledger": uuid.uuid4().hex,
        "data_set": data_set,
        "unit": unit,
        "delta": float(delta),
        "budgets": budgets.as_json(),
    }
