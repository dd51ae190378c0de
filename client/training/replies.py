"""Replies as a ledger keeps them: as they travel in a file, and in a quicker form in memory."""

from __future__ import annotations

from lorica.client.ledger import Ledger, MemoryLedger
from lorica.common.wire.messages import (
    Reply,
    reply_from_bytes,
    reply_from_memory,
    reply_to_bytes,
    reply_to_memory,
)


def packed_for(ledger: Ledger, reply: Reply) -> bytes:
    """A reply as this ledger keeps it."""
    return reply_to_memory(reply) if isinstance(ledger, MemoryLedger) else reply_to_bytes(reply)


def unpacked_from(ledger: Ledger, content: bytes) -> Reply:
    """The inverse of :func:`packed_for`."""
    in_memory = isinstance(ledger, MemoryLedger)
    return reply_from_memory(content) if in_memory else reply_from_bytes(content)
