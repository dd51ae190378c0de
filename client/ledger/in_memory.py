"""A ledger's entries and replies in this process's memory, for ledgers of virtual sites: what
:class:`~lorica.client.ledger.store.Store` keeps in a file.

As there, a transaction is all or nothing, entries are only appended, and nothing is handed out that
a caller could change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lorica.client.ledger.chain import Entry
from lorica.common.errors import Code, LoricaError


class MemoryStore:
    """As a store; whoever holds the ledger's lock uses it."""

    path = None
    """It has none."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._replies: dict[int, bytes] = {}

    def close(self) -> None:
        """Nothing is open."""

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction: what is written in it is undone when it ends with an error."""
        count, replies = len(self._entries), self._replies
        self._replies = dict(replies)
        try:
            yield
        except BaseException:
            del self._entries[count:]
            self._replies = replies
            raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A transaction that changes nothing."""
        yield

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """Entries with numbers above ``after``, ascending."""
        yield from self._entries[after:]

    def hash_of(self, number: int) -> str | None:
        """Hash of the entry with this number; None when there is none."""
        return self._entries[number - 1].hash if 0 < number <= len(self._entries) else None

    def append(self, entry: Entry) -> None:
        """Write the next entry.

        Raises:
            LoricaError: LOR-612 it is not the next.
        """
        if entry.number != len(self._entries) + 1:
            raise LoricaError(
                Code.LEDGER_DAMAGED, f"Entry {entry.number} does not follow the ledger's last."
            )
        self._entries.append(entry)

    def reply(self, number: int) -> bytes | None:
        """The reply whose answer is entry ``number``, if it is still kept."""
        return self._replies.get(number)

    def keep_reply(self, number: int, reply: bytes, drop: list[int]) -> None:
        """Keep the reply of entry ``number`` and forget those of the entries ``drop``."""
        for one in drop:
            self._replies.pop(one, None)
        self._replies[number] = reply

    def kept(self) -> list[int]:
        """Numbers of the answers whose replies are kept, ascending."""
        return sorted(self._replies)
