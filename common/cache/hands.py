"""Arrays that several processes fill, each some of the batches.

Every batch is computed whole by one process, with the number of threads that all of them have, so
the values are those of one process, to the bit.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Callable

import numpy as np
import torch

from lorica.common.machine.forks import begin_child, forking

Part = Callable[[slice], None]
"""Computes the batches whose numbers are in a slice (start, None, step), and writes their values to
where all processes see them."""


def shared_empty(shape: tuple[int, int]) -> torch.Tensor:
    """A float32 array in memory that forked processes have in common, zeros."""
    count = math.prod(shape)
    held = mmap.mmap(-1, max(1, 4 * count))  # unmapped when the array is gone
    return torch.from_numpy(np.frombuffer(held, dtype=np.float32, count=count).reshape(shape))


def filled(part: Part, hands: int) -> None:
    """Have this process and ``hands`` - 1 others, which are forked from it, each compute its part.

    What another process did not bring to an end, whyever, this one computes: what is wrong with it
    is met here, and raised.
    """
    others = {}
    threads = torch.get_num_threads()
    if hands > 1:
        with forking() as context:
            for number in range(1, hands):
                mine = slice(number, None, hands)
                process = context.Process(target=_other, args=(part, mine, threads), daemon=True)
                process.start()
                others[process] = mine
    try:
        part(slice(0, None, hands))
    except BaseException:
        for process in others:
            process.terminate()
        raise
    finally:
        for process in others:
            process.join()
    for process, mine in others.items():
        if process.exitcode:
            part(mine)


def _other(part: Part, mine: slice, threads: int) -> None:
    begin_child(threads)
    try:
        part(mine)
    except Exception:  # noqa: BLE001 - whatever it is, it is met again, and said, by the parent
        sys.exit(1)
