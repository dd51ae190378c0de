"""A ledger's entries and replies in this process's memory, for ledgers of virtual sites: what
:class:`~lorica.client.ledger.store.Store` keeps in a file.

As there, a transaction is all or nothing, entries are only appended, and nothing is handed out that
a caller could change.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator

from lorica.client.ledger.chain import Entry
from lorica.common.errors import Code, LoricaError


class Replies:
    """What ledgers of one process keep of replies together, within a limit: the oldest go first.

    A ledger keeps replies so that a request whose answer was lost may come again. Where nothing
    travels none is lost, and a hundred thousand sites' replies need not be in memory.
    """

    def __init__(self, limit_bytes: float = float("inf")) -> None:
        """``limit_bytes``: of all replies together; the newest stays, whatever its size."""
        self._limit = limit_bytes
        self._held: OrderedDict[tuple[object, int], bytes] = OrderedDict()
        self._bytes = 0

    def get(self, owner: object, number: int) -> bytes | None:
        """A reply, if it is still kept."""
        return self._held.get((owner, number))

    def put(self, owner: object, number: int, reply: bytes) -> None:
        """Keep a reply."""
        self._held[owner, number] = reply
        self._bytes += len(reply)
        while self._bytes > self._limit and len(self._held) > 1:
            self._bytes -= len(self._held.popitem(last=False)[1])

    def drop(self, owner: object, number: int) -> None:
        """Forget a reply, if it is still kept."""
        self._bytes -= len(self._held.pop((owner, number), b""))


class MemoryStore:
    """As a store; whoever holds the ledger's lock uses it."""

    path = None
    """It has none."""

    def __init__(self, replies: Replies | None = None) -> None:
        """``replies``: where other ledgers of the process keep theirs, too; None: nobody else."""
        self._entries: list[Entry] = []
        self._owner = object()
        self._replies = Replies() if replies is None else replies
        self._kept: list[int] = []
        self._pending: list[tuple[int, bytes, list[int]]] = []

    def close(self) -> None:
        """Forget the replies."""
        for number in self._kept:
            self._replies.drop(self._owner, number)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction: what is written in it is undone when it ends with an error."""
        count, kept = len(self._entries), list(self._kept)
        self._pending = []
        try:
            yield
        except BaseException:
            del self._entries[count:]
            self._kept = kept
            raise
        pending, self._pending = self._pending, []  # else the replies would live here as well
        for number, reply, drop in pending:
            for one in drop:
                self._replies.drop(self._owner, one)
            self._replies.put(self._owner, number, reply)

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
        return self._replies.get(self._owner, number)

    def keep_reply(self, number: int, reply: bytes, drop: list[int]) -> None:
        """Keep the reply of entry ``number`` and forget those of the entries ``drop``."""
        self._pending.append((number, reply, drop))
        self._kept = [one for one in self._kept if one not in drop] + [number]

    def kept(self) -> list[int]:
        """Numbers of the answers whose replies are kept, ascending, but for those that others'
        replies have made room for."""
        return list(self._kept)
