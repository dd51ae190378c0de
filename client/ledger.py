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
from lorica.client.ledger_anchor import (
    Anchor,
    anchor_path,
    check_anchor,
    check_not_removed,
    read_anchor,
    sweep,
    write_anchor,
)
from lorica.client.ledger_budgets import Limits, OverBudgetError, request_name
from lorica.client.ledger_cache import BlockFile, cache_path
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

    def __init__(self, book: Book, limits: Limits, budgets: Budgets) -> None:
        """Not to be called: see :class:`FileLedger` and :class:`MemoryLedger`."""
        self.budgets = budgets
        self._book = book
        self._limits = limits
        self._lock = threading.RLock()

    @property
    def data_set(self) -> str:
        """Name of the data set, as given at creation."""
        return self._book.history.data_set

    @property
    def unit(self) -> str:
        """Unit of privacy that every charge is stated for."""
        return self._book.history.unit

    @property
    def delta(self) -> float:
        """δ at which ε is composed."""
        return self._book.history.delta

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
        with self._lock, self._book.reading():
            self._same_plan(run, fingerprint)
            return self._kept_reply((run, round, kind))

    def charge(self, *charges: Charge) -> Spending:
        """Write down what is about to happen: all of ``charges``, or none.

        A charge whose work was charged before but never answered is not charged again, up to
        :data:`FREE_RETRIES` times.

        Args:
            charges: what is about to run, for one or several kinds of one run; at least one.

        Returns:
            What is spent with them.

        Raises:
            LoricaError: LOR-403 a budget does not allow it or it was answered before, LOR-104
                another plan, LOR-615 another unit, LOR-61x, LOR-60x. Nothing may run then.
        """
        if len({charge.run for charge in charges}) != 1 or len({c.key for c in charges}) < len(
            charges
        ):
            raise ValueError("charges must be of one run and of distinct rounds or kinds")
        refusal: OverBudgetError | None = None
        with self._lock:
            try:
                with self._book.writing():
                    for charge in charges:
                        self._check(charge)
                    fresh = [charge for charge in charges if not self._reuse(charge)]
                    try:
                        spent = self._limits.check(self._book.history, self.budgets, fresh, self._book.time())
                    except OverBudgetError as error:
                        refusal = error
                        self._note(error)
                    else:
                        for charge in fresh:
                            self._book.append(chain.CHARGE, charge.as_json() | {"spent": spent.as_json()})
                self._book.anchor()
            except LoricaError:
                if refusal is None:
                    raise
            if refusal is not None:
                raise refusal
            return spent or self._limits.spending(
                self._book.history, self.budgets, charges[0].run, self._book.time()
            )

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
            with self._book.writing():
                winner = self._kept_reply(key)
                if winner is not None:
                    return winner
                charged = self._book.history.newest(key)
                if charged is None:
                    raise LoricaError(
                        Code.PRIVACY_BUDGET,
                        f"{request_name(key)} was never charged; nothing may leave.",
                    )
                done = {
                    "run": run,
                    "round": round,
                    "kind": kind,
                    "charge": charged.number,
                    "sha256": hashlib.sha256(reply).hexdigest(),
                    "bytes": len(reply),
                }
                number = self._book.append(chain.DONE, done)
                self._book.store.keep_reply(number, reply, self._superseded(key))
            self._book.anchor()
            return reply

    def spending(self, run: str = "") -> Spending:
        """What is spent so far, in all, by a run, and in the current period."""
        with self._lock, self._book.reading():
            return self._limits.spending(self._book.history, self.budgets, run, self._book.time())

    def history(self) -> History:
        """Everything in the ledger, as of now; to read, not to change."""
        with self._lock, self._book.reading():
            return self._book.history

    def close(self) -> None:
        """Close the files; the ledger cannot be used afterwards."""
        with self._lock:
            self._book.store.close()
            self._limits.close()

    # Rules

    def _same_plan(self, run: str, fingerprint: str) -> None:
        agreed = self._book.history.fingerprints.get(run, fingerprint)
        if agreed != fingerprint:
            raise LoricaError(
                Code.PLAN_MISMATCH,
                f"Run {run!r} was charged under the plan {agreed[:12]}, not {fingerprint[:12]}.",
            )

    def _check(self, charge: Charge) -> None:
        self._same_plan(charge.run, charge.fingerprint)
        if charge.unit != self.unit:
            raise LoricaError(
                Code.LEDGER_MISMATCH,
                f"The ledger protects the unit '{self.unit}', the charge is per '{charge.unit}'.",
            )
        if charge.key in self._book.history.done:
            raise _not_kept(charge.key)

    def _reuse(self, charge: Charge) -> bool:
        """Whether an unanswered charge pays for this attempt; writes the attempt down."""
        before = self._book.history.newest(charge.key)
        if before is None or not before.charge.same_work(charge):
            return False
        if self._book.history.retries[before.number] >= FREE_RETRIES:
            return False
        self._book.append(chain.RETRY, {"charge": before.number})
        return True

    def _note(self, over: OverBudgetError) -> None:
        """Write a refusal into the chain, once a day for the same request."""
        today = self._book.time().date()
        written = [item for item in self._book.history.refused if item.time.date() == today]
        same = [(item.run, item.round, item.kind, item.budget) for item in written]
        if len(written) < REFUSALS_PER_DAY and over.identity not in same:
            self._book.append(chain.REFUSED, over.as_json())

    def _kept_reply(self, key: tuple[str, int, str]) -> bytes | None:
        done = self._book.history.done.get(key)
        if done is None:
            return None
        reply = self._book.store.reply(done.number)
        if reply is None:
            raise _not_kept(key)
        if hashlib.sha256(reply).hexdigest() != done.sha256:
            raise LoricaError(
                Code.LEDGER_DAMAGED, f"The stored reply to {request_name(key)} was changed."
            )
        return reply

    def _superseded(self, key: tuple[str, int, str]) -> list[int]:
        """Answers whose replies make room for the one of ``key``."""
        kept = self._book.store.kept()
        keys = {number: self._book.history.answers.get(number) for number in kept}
        same = [n for n, old in keys.items() if old is None or (old[0], old[2]) == (key[0], key[2])]
        rest = [number for number in kept if number not in same]
        return same + rest[: max(0, len(rest) - KEPT_REPLIES + 1)]


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
        store = Store(path, create=create, timeout=timeout)
        super().__init__(store, anchor, budgets, clock, cache_path(path))
        try:
            with self._book.reading():
                pass
            self._begin(data_set, unit, delta, create=create)
        except BaseException:
            self.close()
            raise

    def _begin(self, data_set: str, unit: str, delta: float, *, create: bool) -> None:
        assert self._anchor is not None
        with self._book.writing():
            sweep(self._anchor)
            if not self._book.history.count:
                if not create:
                    raise LoricaError(
                        Code.LEDGER_MISSING, f"{self._book.store.path} holds no privacy ledger."
                    )
                self._book.append(chain.OPEN, opening(data_set, unit, delta, self.budgets))
        self._book.anchor()
        have = (self.data_set, self.unit, self.delta)
        if have != (data_set, unit, delta):
            raise LoricaError(
                Code.LEDGER_MISMATCH,
                f"The ledger is of data set, unit and delta {have}, the site of "
                f"{(data_set, unit, delta)}.",
            )
        if self._book.history.budgets[-1][1] != self.budgets:
            with self._book.writing():
                self._book.append(chain.BUDGETS, {"budgets": self.budgets.as_json()})
            self._book.anchor()


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
        store = Store(None, create=True)
        super().__init__(store, None, budgets or Budgets.unlimited(), clock, None)
        with self._book.writing():
            self._book.append(chain.OPEN, opening(data_set, unit, delta, self.budgets))


def opening(data_set: str, unit: str, delta: float, budgets: Budgets) -> dict[str, Any]:
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


def _not_kept(key: tuple[str, int, str]) -> LoricaError:
    return LoricaError(
        Code.PRIVACY_BUDGET,
        f"{request_name(key)} was answered before and its reply is no longer kept; answering it "
        "again would release a second, unpaid reply.",
    )
