"""One process at a time: a lock file that the system frees whatever way its holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors


@contextlib.contextmanager
def only_one(path: Path, what: str, *, wait: float = 0.5) -> Iterator[None]:
    """Hold the lock ``path`` with this process's id in it.

    Args:
        path: the lock file; stays there afterwards.
        what: what runs, for the message.
        wait: how long to wait for another holder to end, seconds.

    Raises:
        LoricaError: LOR-725 another process holds it, LOR-601 the disk is full, LOR-602.
    """
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                raise LoricaError(
                    Code.ALREADY_RUNNING,
                    f"{what} runs already, as process {_holder(descriptor) or 'unknown'}.",
                )
            time.sleep(0.05)
        with storage_errors(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def holder(path: Path) -> int | None:
    """Process id of who holds the lock now; None when nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else 0
