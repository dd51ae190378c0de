"""What runs took at this site, time and energy, beside what they spent of its budget.

For the site alone: how long an answer took depends on its records. Nothing of it is sent, and the
file is readable by its owner alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lorica.common.display.text import printable
from lorica.common.errors import LoricaError
from lorica.common.machine.files import write_atomically

MOST_RUNS = 1000
"""Runs in the file; of more the ones that were answered last."""

_MOST_NAME = 100  # characters of a run id
_PRIVATE = 0o600
_log = logging.getLogger("lorica.site")


@dataclass(frozen=True)
class Taken:
    """What answers took."""

    answers: int
    """How many were given; stored ones that were asked for again count, too."""
    seconds: float
    """From taking up a request to its answer."""
    cpu_seconds: float
    """Of the trainer's processors."""
    joules: float | None
    """Energy of the machine's processors meanwhile, whoever worked on it; None where that is not
    known of all answers."""

    def __add__(self, other: Taken) -> Taken:
        known = self.joules is not None and other.joules is not None
        return Taken(
            self.answers + other.answers,
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            (self.joules or 0.0) + (other.joules or 0.0) if known else None,
        )


def effort_file(ledger: Path) -> Path:
    """Where it lies, beside a ledger."""
    return ledger.with_suffix(".effort.json")


def note_taken(file: Path, run: str, taken: Taken) -> None:
    """Add what an answer took to its run's. What cannot be written is logged and left out: the
    answer is worth more."""
    try:
        found = taken_by_run(file)
        before = found.pop(name_of(run), None)
        found[name_of(run)] = before + taken if before else taken
        kept = dict(list(found.items())[-MOST_RUNS:])
        content = {name: asdict(one) for name, one in kept.items()}
        write_atomically(file, json.dumps(content, indent=1) + "\n", mode=_PRIVATE)
    except LoricaError as error:
        _log.warning("what run %s took was not written: %s", name_of(run), error)


def taken_by_run(file: Path) -> dict[str, Taken]:
    """Run, as of :func:`name_of` -> what it took, the one that was answered last at the end; empty
    where nothing is known."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {name: replace(_NOTHING, **one) for name, one in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        _log.warning("%s cannot be read, so what runs took is not known: %s", file, error)
        return {}


def name_of(run: str) -> str:
    """A run's id as it is kept: it comes from a coordinator."""
    return printable(run[:_MOST_NAME])


def in_all(taken: Mapping[str, Taken], runs: Iterable[str]) -> Taken | None:
    """What these runs took together, those of whom it is known; None of none."""
    found = [taken[name_of(run)] for run in runs if name_of(run) in taken]
    return sum(found[1:], found[0]) if found else None


_NOTHING = Taken(0, 0.0, 0.0, 0.0)
