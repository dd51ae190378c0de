"""Reading a ledger without trusting it: every fault found, named, and nothing written."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorica.client.ledger.anchor import anchor_path, check_anchor, check_not_removed, read_anchor
from lorica.client.ledger.chain import START, Entry, check
from lorica.client.ledger.composer import Composer
from lorica.client.ledger.history import History
from lorica.client.ledger.store import Store
from lorica.common.errors import Code, LoricaError

MOST_PROBLEMS = 20
"""Problems listed before the rest is left out."""

_AGREEMENT = 0.99  # a recorded ε may be below a recomposed one by the width of the bounds


@dataclass
class Inspection:
    """A ledger as it was found."""

    path: Path
    history: History
    """The entries up to the first fault; all of them in a sound ledger."""
    entries: list[Entry] = field(default_factory=list)
    """The same entries, as they are in the file."""
    count: int = 0
    """Number of entries in the file, sound or not."""
    problems: list[str] = field(default_factory=list)
    """What is wrong, a sentence each; empty for a sound ledger."""
    epsilon: float | None = None
    """ε composed anew from the entries alone; None when it was not asked for."""

    composer: Composer | None = None
    """What composed it, to go on with."""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def require_sound(self) -> None:
        """Raise when something is wrong.

        Raises:
            LoricaError: LOR-612 with the first problem.
        """
        if self.problems:
            more = len(self.problems) - 1
            rest = f" ({more} more: see `lorica site ledger verify`)" if more else ""
            raise LoricaError(Code.LEDGER_DAMAGED, self.problems[0] + rest)


def inspect(
    path: Path, *, heads: Sequence[tuple[int, str]] = (), recompose: bool = False
) -> Inspection:
    """Check chain, anchor, replies and file.

    Args:
        path: the ledger.
        heads: entries (number, hash) that outside witnesses know: earlier exports or reports.
        recompose: also compose ε anew, with no cached composition, and compare it with the ε
            that the newest charge recorded; takes a tenth of a second per distinct round.

    Raises:
        LoricaError: LOR-614 there is no ledger, LOR-611 it is locked, LOR-602 it may not be read.
    """
    found = Inspection(path, History())
    try:
        anchor_file = anchor_path(path)
        check_not_removed(path, anchor_file)
        anchor = read_anchor(anchor_file)
        store = Store(path, create=False, read_only=True)
    except LoricaError as error:
        return _fatal(found, error)
    try:
        with store.reading():
            _read(found, store)
            if found.count == found.history.count:
                check_anchor(found.history, anchor)
                _check_replies(found, store)
            wrong = store.structural_problem()
            if wrong is not None:
                found.problems.append(f"SQLite finds the file damaged: {wrong}.")
    except LoricaError as error:
        _fatal(found, error)
    finally:
        store.close()
    _check_heads(found, heads)
    if recompose:
        _recompose(found)
    del found.problems[MOST_PROBLEMS:]
    return found


def _fatal(found: Inspection, error: LoricaError) -> Inspection:
    if error.code in (Code.LEDGER_DAMAGED, Code.LEDGER_ROLLED_BACK):
        found.problems.append(error.detail)
        return found
    raise error


def _read(found: Inspection, store: Store) -> None:
    """Fold the sound beginning, then go on checking links to name every broken one."""
    previous, number = START, 0
    for entry in store.entries():
        found.count += 1
        number += 1
        try:
            if found.problems:
                check(entry, number, previous)
            else:
                found.history.add(entry)
                found.entries.append(entry)
        except LoricaError as error:
            if len(found.problems) < MOST_PROBLEMS:
                found.problems.append(error.detail)
        previous, number = entry.hash, entry.number


def _check_replies(found: Inspection, store: Store) -> None:
    done = {answer.number: answer for answer in found.history.done.values()}
    for number in store.kept():
        reply = store.reply(number)
        if number not in done:
            found.problems.append(f"A reply is stored for entry {number}, which is no answer.")
        elif reply is None or hashlib.sha256(reply).hexdigest() != done[number].sha256:
            found.problems.append(f"The stored reply of entry {number} was changed.")


def _check_heads(found: Inspection, heads: Sequence[tuple[int, str]]) -> None:
    hashes = found.history.hashes
    for number, digest in heads:
        if not 1 <= number <= len(hashes):
            found.problems.append(
                f"Entry {number}, which a witness knows, is not in the ledger: it has "
                f"{len(hashes)} sound entries."
            )
        elif hashes[number - 1] != digest.lower():
            found.problems.append(
                f"Entry {number} is not the one that a witness knows ({digest[:12]}…)."
            )


def _recompose(found: Inspection) -> None:
    history = found.history
    found.composer = Composer(history.delta)
    found.epsilon = found.composer.record(history.events())
    if history.charges:
        recorded = history.charges[-1].spent.lifetime
        if math.isnan(recorded) or recorded < _AGREEMENT * found.epsilon:
            found.problems.append(
                f"The newest charge records a total epsilon of {recorded:.4g}, but its entries "
                f"compose to {found.epsilon:.4g}."
            )
