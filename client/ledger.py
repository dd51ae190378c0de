"""The site's durable privacy ledger: charge, then train, then mark; never the other way round.

One ledger per data set. An answer goes through three commits:

1. :meth:`Ledger.charge` writes what the private step is about to cost, if the budgets allow it.
2. The step runs.
3. :meth:`Ledger.store` marks the charge done and keeps the reply, in one transaction. Only the
   bytes that ``store`` returns may leave the site.

Formal guarantee:
    *Accounting.* Every reply that ``store`` returned has a charge in the chain, written before its
    step ran, and each charge has at most one answer, in whichever process and after whichever
    crash. So ε composed over all charges (PLD, an upper bound, at the ledger's δ, under the
    neighbouring relation of :class:`~lorica.common.privacy.accountant.PrivacyEvent`) bounds what all
    released replies together reveal of one unit. A crash, a full disk or a lost process can
    leave a charge without an answer, which overcounts; none leaves an answer without a charge.

    *Budgets.* They are checked and the charge written under one write lock, so two processes
    cannot both take the last of a budget. A round's mechanism may depend on earlier replies; its
    (σ, q, steps) must not, which holds as they follow from the plan and public figures. Where
    somebody chooses the *next run's* parameters in view of earlier replies, PLD composition is
    not known to hold, while Rényi composition does (Feldman and Zrnic, "Individual Privacy
    Accounting via a Rényi Filter", 2021): that is why RDP is reported beside it.

    *A charge that was never answered* (its process died) pays for a new attempt at the same work:
    same run, round, kind, events and plan. Nothing of the earlier attempt had left, as a reply
    leaves only after ``store``; and when two attempts race, the first to store wins and the
    other is handed the winner's bytes. The released transcript is thus that of one attempt.
    What an attempt that died can still reveal is *that* it died, a bit that only a fault which
    depends on the records could make informative. It is not noised and no accounting covers it;
    the ledger bounds it: after :data:`FREE_RETRIES` unpaid attempts a round is charged again, and
    every attempt is an entry. The trainer stores the refusal of a step that raised as its reply,
    so an exception closes the round and is told once; only a process that died leaves it open.

    *Evidence.* Entries form a hash chain with an anchor (:mod:`lorica.client.ledger_chain`,
    :mod:`lorica.client.ledger_anchor`): an edit, deletion, reordering, truncation or restored
    older copy is found when the ledger is opened, and nothing runs. Times never go back along
    the chain, so setting the clock back opens no earlier period.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorica.client import ledger_chain as chain
from lorica.client.ledger_anchor import anchor_path, check_not_removed
from lorica.client.ledger_book import Book, Clock
from lorica.client.ledger_budgets import Limits
from lorica.client.ledger_cache import BlockFile, cache_path
from lorica.client.ledger_history import VERSION, History
from lorica.client.ledger_model import Budgets, Charge, Period, Spending
from lorica.client.ledger_rules import FREE_RETRIES, Ledger
from lorica.client.ledger_store import Store
from lorica.common.errors import Code, LoricaError

__all__ = [
    "FREE_RETRIES",
    "Budgets",
    "Charge",
    "FileLedger",
    "Ledger",
    "MemoryLedger",
    "Period",
    "Spending",
]


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
    ) -> None:
        """As :class:`FileLedger`; without budgets the plan's own is the only limit."""
        book = Book(Store(None, create=True), None, clock)
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
