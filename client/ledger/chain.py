"""The chain: entries that each hold the hash of the one before, so that none can be altered.

An entry's hash is SHA-256 over the previous entry's hash and its own canonical JSON. Editing,
removing or reordering any entry but the newest breaks a link. Removing the *newest* entries
breaks none: that is what the anchor is for (:mod:`lorica.client.ledger.anchor`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lorica.common.errors import Code, LoricaError

START = "0" * 64
"""What the first entry's hash is linked to."""

OPEN, BUDGETS, CHARGE, RETRY, DONE, REFUSED = (
    "open",
    "budgets",
    "charge",
    "retry",
    "done",
    "refused",
)
"""Kinds of entries: the ledger's creation, a change of the site's budgets, a charge, one more
attempt at a charge that was never answered, an answer, a refusal for want of budget."""


@dataclass(frozen=True)
class Entry:
    """One link of the chain."""

    number: int
    """Position, from 1."""
    body: str
    """Canonical JSON with number, time, entry (its kind) and the kind's own fields."""
    hash: str
    """SHA-256 over the previous hash and the body, 64 hex digits."""

    def content(self) -> dict[str, Any]:
        """The body's fields."""
        found: dict[str, Any] = json.loads(self.body)
        return found


def link(previous: str, number: int, time: datetime, kind: str, fields: Mapping[str, Any]) -> Entry:
    """The entry that follows the one whose hash is ``previous``."""
    content = {**fields, "number": number, "time": time_out(time), "entry": kind}
    body = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return Entry(number, body, hash_of(previous, body))


def hash_of(previous: str, body: str) -> str:
    """SHA-256 over the previous entry's hash and a body, 64 hex digits."""
    return hashlib.sha256(f"{previous}\n{body}".encode("utf-8", "surrogatepass")).hexdigest()


def check(entry: Entry, number: int, previous: str) -> dict[str, Any]:
    """The fields of an entry that is whole and follows ``previous`` at position ``number``.

    Raises:
        LoricaError: LOR-612, naming the entry and what is wrong with it.
    """
    if entry.number != number:
        wrong = f"Entry {number} of the ledger is missing"
    elif entry.hash != hash_of(previous, entry.body):
        wrong = (
            f"Entry {number} of the ledger, or its place in the chain, was changed: "
            "its hash does not match"
        )
    else:
        try:
            content = entry.content()
            if content.get("number") == number:
                return content
            wrong = f"Entry {number} of the ledger carries the number {content.get('number')!r:.50}"
        except (ValueError, AttributeError, RecursionError):
            wrong = f"Entry {number} of the ledger is not a JSON object"
    raise LoricaError(Code.LEDGER_DAMAGED, f"{wrong}.")


def time_out(time: datetime) -> str:
    """A time as the chain keeps it: ISO 8601, UTC, microseconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def time_in(text: str) -> datetime:
    """The inverse of :func:`time_out`."""
    return datetime.fromisoformat(text).astimezone(UTC)
