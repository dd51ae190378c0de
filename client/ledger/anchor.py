"""The anchor: a small file beside the ledger that remembers how long its chain is.

A chain shows every change but one: its newest entries can be cut off, or the whole file be
replaced by an older copy, and what is left is a sound chain. The anchor holds the number of
entries and the newest hash, so the ledger must contain the anchor's chain as a beginning.

It is written after the ledger's commit and before a charge is reported, under the ledger's write
lock. So it never runs ahead of the ledger, every charge whose step ran is anchored, and after a
crash between the two writes the ledger is at most ahead of its anchor, which is no fault.

What it cannot show: somebody who can write both files can put back an older *pair*, remove both,
or build a new chain. Against that only a witness outside their reach helps: keep what
``lorica site ledger export`` prints (it holds number and hash of the newest entry) with somebody
else, and give it to ``lorica site ledger verify --head NUMBER:HASH``.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from lorica.client.ledger.history import History
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors, write_atomically

SUFFIX = ".anchor"


@dataclass(frozen=True)
class Anchor:
    """A beginning of a chain."""

    ledger: str
    """The ledger's own id."""
    number: int
    """Number of the newest entry."""
    hash: str
    """Its hash."""


def anchor_path(ledger: Path) -> Path:
    """Where a ledger's anchor is."""
    return ledger.with_name(ledger.name + SUFFIX)


def read_anchor(path: Path) -> Anchor | None:
    """The anchor in a file; None when there is no file.

    Raises:
        LoricaError: LOR-612 unreadable content, LOR-602 refused by the system.
    """
    with storage_errors(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        content = json.loads(data)
        found = Anchor(content["ledger"], content["number"], content["hash"])
        if isinstance(found.number, int) and len(found.hash) == 64:
            return found
    raise LoricaError(Code.LEDGER_DAMAGED, f"The ledger's anchor {path} is damaged.")


def write_anchor(path: Path, anchor: Anchor) -> None:
    """Write the anchor, whole and durable.

    Raises:
        LoricaError: LOR-601 disk full, LOR-602 refused by the system.
    """
    content = {"ledger": anchor.ledger, "number": anchor.number, "hash": anchor.hash}
    write_atomically(path, json.dumps(content) + "\n")


def check_anchor(history: History, anchor: Anchor | None) -> None:
    """Raise unless the anchor's chain is a beginning of the history.

    Raises:
        LoricaError: LOR-613 the history is shorter or another ledger's, LOR-612 it differs, or
            the anchor is gone.
    """
    if anchor is None:
        if history.count <= 1:  # created, and killed before it was anchored
            return
        problem = "has no anchor, the file beside it that tells whether entries are missing"
        raise LoricaError(Code.LEDGER_DAMAGED, f"The ledger {problem}.")
    if history.count < anchor.number:
        raise LoricaError(
            Code.LEDGER_ROLLED_BACK,
            f"The ledger has {history.count} entries, but its anchor knows of {anchor.number}: "
            "the newest were removed, or an older copy was put in its place.",
        )
    if history.ledger != anchor.ledger:
        raise LoricaError(Code.LEDGER_ROLLED_BACK, "The ledger's anchor belongs to another ledger.")
    if history.hashes[anchor.number - 1] != anchor.hash:
        raise LoricaError(
            Code.LEDGER_DAMAGED,
            f"Entry {anchor.number} of the ledger is not the one that was anchored.",
        )


def check_not_removed(ledger: Path, anchor: Path) -> None:
    """Raise when there is an anchor but no ledger.

    Raises:
        LoricaError: LOR-613.
    """
    known = read_anchor(anchor)
    with storage_errors(ledger):
        empty = not ledger.exists() or ledger.stat().st_size == 0
    if known is not None and empty:
        raise LoricaError(
            Code.LEDGER_ROLLED_BACK,
            f"The ledger {ledger} is gone, but its anchor knows of {known.number} entries.",
        )


def sweep(path: Path) -> None:
    """Remove what killed processes left half-written; call under the ledger's write lock."""
    with contextlib.suppress(OSError):
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            left.unlink(missing_ok=True)
