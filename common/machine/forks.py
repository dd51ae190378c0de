"""Processes forked from one that has loaded much, which then lies in memory once for all."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from multiprocessing.context import ForkContext

import torch


def can_fork() -> bool:
    """Whether a process with a loaded model can be forked here."""
    return sys.platform == "linux"


@contextlib.contextmanager
def forking() -> Iterator[ForkContext]:
    """What makes processes, which are to be started within the block.

    What is there stays where it is: pages are shared as long as nobody writes, and a collection of
    garbage in a child would write to all of them.
    """
    gc.freeze()
    try:
        yield multiprocessing.get_context("fork")
    finally:
        gc.unfreeze()


def begin_child(threads: int) -> None:
    """Begin a forked process that computes with so many threads and ends when it is told to.

    Ctrl-C reaches the parent, too, which then ends its children; a handler of SIGTERM is the
    parent's.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(threads)
