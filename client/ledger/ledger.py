"""The ledger's rules: what is charged, what is paid already, what may leave."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from lorica.client.ledger import chain
from lorica.client.ledger.book import Book
from lorica.client.ledger.charge import Budgets, Charge, Spending
from lorica.client.ledger.history import History
from lorica.client.ledger.limits import Limits, OverBudgetError, request_name
from lorica.common.errors import Code, LoricaError

FREE_RETRIES = 3
"""Attempts at an unanswered charge, beyond the first, that cost nothing."""

KEPT_REPLIES = 16
"""Replies kept in all: the newest of each (run, kind), of the newest such."""

REFUSALS_PER_DAY = 100
"""Refusals written into the chain per day (UTC); more are refused but not written, so that a
coordinator cannot fill the disk by asking."""


@dataclass(frozen=True)
class Forecast:
    """What a run would do to a ledger."""

    before: Spending
    """What is spent without it."""
    after: Spending
    """What would be spent with it."""
    refusal: str = ""
    """Which budget does not allow it, as a sentence; empty when all do."""


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
        with self._lock:
            with self._book.reading():
                self._same_plan(run, fingerprint)
                reply = self._kept_reply((run, round, kind))
            if reply is not None:
                self._book.anchor()  # its mark may be committed but not yet anchored
            return reply

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
        keys = {charge.key for charge in charges}
        if len(keys) < max(1, len(charges)) or len({run for run, _, _ in keys}) != 1:
            raise ValueError("charges must be of one run and of distinct rounds or kinds")
        refusal: OverBudgetError | None = None
        with self._lock:
            try:
                with self._book.writing() as history:
                    for charge in charges:
                        self._check(charge)
                    paid = [self._paid(charge) for charge in charges]
                    fresh = [c for c, old in zip(charges, paid, strict=True) if old is None]
                    now = self._book.time()
                    try:
                        spent = self._limits.check(history, self.budgets, fresh, now)
                    except OverBudgetError as error:
                        refusal = error
                        self._note(error)
                    else:
                        self._write(charges, paid, spent)
                self._book.anchor()
            except LoricaError:
                if refusal is None:  # a refusal stands, whether or not it could be written down
                    raise
            if refusal is not None:
                raise refusal
            return spent or self._limits.spending(
                self._book.history, self.budgets, charges[0].run, self._book.time()
            )

    def store(
        self,
        run: str,
        round: int,
        kind: str,
        reply: bytes,
        *,
        beside: Callable[[], None] = lambda: None,
    ) -> bytes:
        """Mark a charge done and keep its reply, durably; then the reply may leave.

        Args:
            run: Lorica's run id.
            round: round of the request.
            kind: what was asked.
            reply: what is to be sent, at most 1 GB.
            beside: keeps what else the step gave; called under the write lock, and only if this
                reply is the one that will leave. If it raises, nothing is marked.

        Returns:
            The bytes to send: ``reply``, or, where another process answered first, its reply.

        Raises:
            LoricaError: LOR-403 never charged, or answered before and no longer kept; LOR-61x,
                LOR-60x. Nothing may leave then.
        """
        key = (run, round, kind)
        with self._lock:
            with self._book.writing() as history:
                winner = self._kept_reply(key)
                charged = history.newest(key)
                if charged is None:
                    raise LoricaError(
                        Code.PRIVACY_BUDGET,
                        f"{request_name(key)} was never charged; nothing may leave.",
                    )
                if winner is None:
                    beside()
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
            return reply if winner is None else winner

    def spending(self, run: str = "") -> Spending:
        """What is spent so far, in all, by a run, and in the current period."""
        with self._lock, self._book.reading() as history:
            return self._limits.spending(history, self.budgets, run, self._book.time())

    def forecast(self, *charges: Charge) -> Forecast:
        """What :meth:`charge` would say of ``charges``, all of one run; nothing is written."""
        with self._lock, self._book.reading() as history:
            now, run = self._book.time(), charges[0].run
            more = [event for charge in charges for event in charge.events]
            before = self._limits.spending(history, self.budgets, run, now)
            after = self._limits.spending(history, self.budgets, run, now, more, charges[0].whole)
            try:
                self._limits.check(history, self.budgets, charges, now)
            except OverBudgetError as error:
                return Forecast(before, after, error.forecast)
            return Forecast(before, after)

    def history(self) -> History:
        """Everything in the ledger, as of now; to read, not to change."""
        with self._lock, self._book.reading() as history:
            return history

    def close(self) -> None:
        """Close the files; the ledger cannot be used afterwards."""
        with self._lock:
            self._book.store.close()
            self._limits.close()

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
            self._kept_reply(charge.key)  # raises when it is no longer kept
            raise LoricaError(
                Code.PRIVACY_BUDGET,
                f"{request_name(charge.key)} was answered before; its stored reply may be sent "
                "again, but it is not to be worked on again.",
            )

    def _paid(self, charge: Charge) -> int | None:
        """Number of the unanswered charge that pays for this attempt; None if none does."""
        before = self._book.history.newest(charge.key)
        if before is None or not before.charge.same_work(charge):
            return None
        free = self._book.history.retries[before.number] < FREE_RETRIES
        return before.number if free else None

    def _write(
        self, charges: tuple[Charge, ...], paid: list[int | None], spent: Spending | None
    ) -> None:
        for charge, number in zip(charges, paid, strict=True):
            if number is not None:
                self._book.append(chain.RETRY, {"charge": number})
            elif spent is not None:
                self._book.append(chain.CHARGE, charge.as_json() | {"spent": spent.as_json()})

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


def _not_kept(key: tuple[str, int, str]) -> LoricaError:
    return LoricaError(
        Code.PRIVACY_BUDGET,
        f"{request_name(key)} was answered before and its reply is no longer kept; answering it "
        "again would release a second, unpaid reply.",
    )
