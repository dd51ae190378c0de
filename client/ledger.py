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
    neighbouring relation of :class:`~lorica.common.accounting.PrivacyEvent`) bounds what all
    released replies together reveal of one unit. A crash, a full disk or a lost process can
    leave a charge without an answer, which overcounts; none leaves an answer without a charge.

    *Budgets.* They are checked and the charge written under one write lock, so two processes
    cannot both take the last of a budget. The composition is adaptive: each round's mechanism
    may depend on earlier replies, which PLD composition allows, and the stop at a budget is a
    filter on pre-stated bounds (Whitehouse et al., "Fully-Adaptive Composition in Differential
    Privacy", 2023): each charge's (σ, q, steps) is fixed before its step and compared with what
    is left. A round's (σ, q) follow from public figures; were they chosen adaptively from
    earlier outputs, the PLD of the actual sequence is what is composed here.

    *A charge that was never answered* (its process died) pays for a new attempt at the same work:
    same run, round, kind, events and plan. Nothing of the earlier attempt had left, as a reply
    leaves only after ``store``; and when two attempts race, the first to store wins and the
    other is handed the winner's bytes. The released transcript is thus that of one attempt.
    What an attempt that died can still reveal is *that* it died, a bit that only a fault which
    depends on the records could make informative. It is not noised and no accounting covers it;
    the ledger bounds it: after :data:`FREE_RETRIES` unpaid attempts a round is charged again, and
    every attempt is an entry. A caller whose step fails with an exception should store its
    refusal as the reply, so that the round is closed.

    *Evidence.* Entries form a hash chain with an anchor (:mod:`lorica.client.ledger_chain`,
    :mod:`lorica.client.ledger_anchor`): an edit, deletion, reordering, truncation or restored
    older copy is found when the ledger is opened, and nothing runs. Times never go back along
    the chain, so setting the clock back opens no earlier period.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorica.client import ledger_chain as chain
from lorica.client.ledger_anchor import Anchor, anchor_path, read_anchor, sweep, write_anchor
from lorica.client.ledger_cache import BlockFile, cache_path
from lorica.client.ledger_budgets import Limits, OverBudget
from lorica.client.ledger_history import VERSION, History
from lorica.client.ledger_model import Budgets, Charge, Period, Spending
from lorica.client.ledger_store import Store
from lorica.client.session_ledger import SessionLedger
from lorica.common.errors import Code, LoricaError

__all__ = [
    "FREE_RETRIES",
    "Budgets",
    "Charge",
    "FileLedger",
    "Ledger",
    "MemoryLedger",
    "Period",
    "SessionLedger",
    "Spending",
]

FREE_RETRIES = 3
"""Attempts at an unanswered charge, beyond the first, that cost nothing."""

KEPT_REPLIES = 16
"""Replies kept in all: the newest of each (run, kind), of the newest such."""

REFUSALS_PER_DAY = 100
"""Refusals written into the chain per day (UTC); more are refused but not written, so that a
coordinator cannot fill the disk by asking."""

Clock = Callable[[], datetime]


def _now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """What both ledgers share; safe to use from several threads."""

    def __init__(
        self, store: Store, anchor: Path | None, budgets: Budgets, clock: Clock, cache: Path | None
    ) -> None:
        """Not to be called: see :class:`FileLedger` and :class:`MemoryLedger`."""
        self.budgets = budgets
        self._store = store
        self._anchor = anchor
        self._clock = clock
        self._lock = threading.RLock()
        self._history = History()
        self._blocks = None if cache is None else BlockFile(cache)

    @property
    def data_set(self) -> str:
        """Name of the data set, as given at creation."""
        return self._history.data_set

    @property
    def unit(self) -> str:
        """Unit of privacy that every charge is stated for."""
        return self._history.unit

    @property
    def delta(self) -> float:
        """δ at which ε is composed."""
        return self._history.delta

    def stored(
        self, run: str, round: int, kind: str = "train", *, fingerprint: str
    ) -> bytes | None:
        """The reply to a request that was answered before; None if it was not.

        Args:
            run: Lorica's run id.
            round: round of the request.
            kind: what was asked.
            fingerprint: of the plan that came with the request.

        Raises:
            LoricaError: LOR-104 the run was charged under another plan, LOR-403 answered, but the
                reply is no longer kept, LOR-61x, LOR-60x the ledger cannot be trusted or read.
        """
        with self._lock, self._reading():
            self._same_plan(run, fingerprint)
            return self._kept_reply((run, round, kind))

    def charge(self, *charges: Charge) -> Spending:
        """Write down what is about to happen: all of ``charges``, or none.

        A charge whose work was charged before but never answered is not charged again, up to
        :data:`FREE_RETRIES` times.

        Args:
            charges: what is about to run, for one or several kinds of one run.

        Returns:
            What is spent with them, by the run of the last.

        Raises:
            LoricaError: LOR-403 a budget does not allow it or it was answered before, LOR-104
                another plan, LOR-615 another unit, LOR-61x, LOR-60x. Nothing may run then.
        """
        with self._lock:
            with self._writing():
                fresh = []
                for charge in charges:
                    self._check(charge)
                    open_one = self._reusable(charge)
                    if open_one is None:
                        fresh.append(charge)
                    else:
                        self._append(chain.RETRY, {"charge": open_one})
                refusal = self._charge_fresh(fresh)
                spent = self._history.charges[-1].spent if self._history.charges else None
            self._after_commit()
            if refusal is not None:
                raise refusal
            assert spent is not None
            return spent if fresh else self._limits().spending(charges[-1].run, self._time())

    def store(self, run: str, round: int, kind: str, reply: bytes) -> bytes:
        """Mark a charge done and keep its reply, durably; then the reply may leave.

        Args:
            run: Lorica's run id.
            round: round of the request.
            kind: what was asked.
            reply: what is to be sent, at most 1 GB.

        Returns:
            The bytes to send: ``reply``, or, where another process answered first, its reply.

        Raises:
            LoricaError: LOR-403 never charged, or answered before and no longer kept; LOR-61x,
                LOR-60x. Nothing may leave then.
        """
        key = (run, round, kind)
        with self._lock:
            with self._writing():
                winner = self._kept_reply(key)
                if winner is not None:
                    return winner
                charged = self._history.newest(key)
                if charged is None:
                    raise LoricaError(
                        Code.PRIVACY_BUDGET, f"{_name(key)} was never charged; nothing may leave."
                    )
                done = {
                    "run": run,
                    "round": round,
                    "kind": kind,
                    "charge": charged.number,
                    "sha256": hashlib.sha256(reply).hexdigest(),
                    "bytes": len(reply),
                }
                number = self._append(chain.DONE, done)
                self._store.keep_reply(number, reply, self._superseded(key))
            self._after_commit()
            return reply

    def spending(self, run: str = "") -> Spending:
        """What is spent so far, in all, by a run, and in the current period."""
        with self._lock, self._reading():
            return self._limits().spending(run, self._time())

    def history(self) -> History:
        """Everything in the ledger, as of now; to read, not to change."""
        with self._lock, self._reading():
            return self._history

    def close(self) -> None:
        """Close the files; the ledger cannot be used afterwards."""
        with self._lock:
            self._store.close()
            if self._blocks is not None:
                self._blocks.close()
