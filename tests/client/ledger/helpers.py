"""What the ledger's tests share: cheap charges, ledgers in a folder, forked children."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorica.client.ledger import Budgets, Charge, FileLedger
from lorica.common.privacy.event import PrivacyEvent

PLAN = "a" * 64
OPEN = Budgets(lifetime=1000.0, run=1000.0)


def charge(
    round: int,
    *,
    run: str = "run",
    kind: str = "train",
    sigma: float = 20.0,
    rate: float = 0.1,
    steps: int = 4,
    unit: str = "record",
    plan: str = PLAN,
    **more: Any,
) -> Charge:
    """A charge whose loss distribution is small."""
    events = (PrivacyEvent(sigma, rate, steps),)
    return Charge(run, round, kind, events, unit, plan, **more)


def open_ledger(path: Path, **changes: Any) -> FileLedger:
    """The ledger at ``path``, made if absent unless told otherwise."""
    settings: dict[str, Any] = {
        "data_set": "letters",
        "unit": "record",
        "delta": 1e-5,
        "budgets": OPEN,
        "create": True,
    }
    return FileLedger(path, **(settings | changes))


def answer(ledger: FileLedger, round: int, **changes: Any) -> bytes:
    """Charge a round and store a fresh reply to it."""
    asked = charge(round, **changes)
    ledger.charge(asked)
    return ledger.store(asked.run, asked.round, asked.kind, os.urandom(24))


def fork(work: Callable[[], int | None]) -> int:
    """Run ``work`` in a forked child; its result, or 99 for an exception, is its exit status."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        status = work() or 0
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """The exit status of a child; negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(pid: int) -> int:
    """Kill -9 a child and return its exit status."""
    os.kill(pid, signal.SIGKILL)
    return wait(pid)
