"""Head rounds in a bare loop: no framework, no ledger, no screening. What is left is arithmetic.

    python benchmarks/peers/loop_rounds.py TASK.npz ROUNDS [--empty]

Prints the seconds of every round as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from head_round import Step, Task


def main() -> None:
    """Run and print."""
    torch.set_num_threads(1)
    task = Task.read(Path(sys.argv[1]), rounds=int(sys.argv[2]), empty="--empty" in sys.argv)
    head, step, seconds = task.start(), Step(), []
    for _ in range(task.rounds):
        begun = time.perf_counter()
        total = torch.zeros_like(head)
        for site in range(len(task.sites)):
            total += task.release(head, site)
        head = step(head, total)
        seconds.append(time.perf_counter() - begun)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
