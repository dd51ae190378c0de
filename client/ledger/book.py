"""A chain in a store with an anchor: read it, check it, append to it; knows no budgets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorica.client.ledger import chain
from lorica.client.ledger.anchor import Anchor, check_anchor, read_anchor, sweep, write_anchor
from lorica.client.ledger.history import History
from lorica.client.ledger.in_memory import MemoryStore
from lorica.client.ledger.store import Store
from lorica.common.errors import Code, LoricaError

Clock = Callable[[], datetime]
"""Gives the current time, with its zone."""


class Book:
    """Entries on the disk and what they add up to, kept equal.

    Formal guarantee:
        :attr:`history` holds exactly the committed entries, each checked against the chain, and
        the anchor's chain is a beginning of it; where either fails, nothing is read or written.
        An entry is durable when :meth:`writing` ends without an error, and anchored when
        :meth:`anchor` does.
    """

    def __init__(self, store: Store | MemoryStore, anchor: Path | None, clock: Clock) -> None:
        """
        Args:
            store: where the entries are.
            anchor: the anchor's file; None for a chain in memory.
            clock: gives the current time.
        """
        self.store = store
        self.history = History()
        self._anchor = anchor
        self._clock = clock
        self._pending: list[chain.Entry] = []

    @contextlib.contextmanager
    def reading(self) -> Iterator[History]:
        """The history as of now, unchanging within the block."""
        anchor = self._read_anchor()  # before: the ledger may be ahead of it, never behind
        with self.store.reading():
            self._catch_up(anchor)
            yield self.history

    @contextlib.contextmanager
    def writing(self) -> Iterator[History]:
        """The history as of now; what is appended within the block is written as one."""
        self._pending = []
        with self.store.writing():
            self._catch_up(self._read_anchor())
            yield self.history
        for entry in self._pending:
            self.history.add(entry)

    def append(self, kind: str, fields: dict[str, Any]) -> int:
        """Add an entry to the open :meth:`writing` block and return its number."""
        before = self._pending[-1] if self._pending else None
        number = (before.number if before else self.history.count) + 1
        previous = before.hash if before else self.history.head
        entry = chain.link(previous, number, self.time(), kind, fields)
        self.store.append(entry)
        self._pending.append(entry)
        return number

    def anchor(self) -> None:
        """Anchor the newest entry; under the write lock, so that anchors never go back."""
        if self._anchor is not None:
            with self.writing() as history:
                write_anchor(self._anchor, Anchor(history.ledger, history.count, history.head))

    def tidy(self) -> None:
        """Remove half-written anchors; within a :meth:`writing` block."""
        if self._anchor is not None:
            sweep(self._anchor)

    def time(self) -> datetime:
        """Now, but never before the newest entry: a clock set back opens no earlier period."""
        now, newest = self._clock().astimezone(UTC), self.history.changed
        return now if newest is None else max(now, newest)

    def _catch_up(self, anchor: Anchor | None) -> None:
        """Take in what other processes wrote, and compare with the anchor."""
        history = self.history
        if history.count and self.store.hash_of(history.count) != history.head:
            raise LoricaError(
                Code.LEDGER_ROLLED_BACK,
                f"Entry {history.count} of the ledger is gone or changed since it was read.",
            )
        for entry in self.store.entries(history.count):
            history.add(entry)
        if self._anchor is not None:
            check_anchor(history, anchor)

    def _read_anchor(self) -> Anchor | None:
        return None if self._anchor is None else read_anchor(self._anchor)
