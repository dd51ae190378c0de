"""How long one more round takes on a ledger of many, each with its own σ and q.

    python benchmarks/speed/ledger_speed.py [rounds] [cheap|dpsgd]

Prints seconds for building the ledger's composition once, for charging and storing one more
round in the same process and after a restart with and without the cache of composed blocks, and
for verifying it, chain alone and with ε composed anew.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lorica.client.ledger import Budgets, Charge, FileLedger
from lorica.client.ledger.blocks import cache_path
from lorica.client.ledger.verify import inspect
from lorica.common.privacy.event import PrivacyEvent

RANGES = {"cheap": ((4, 10), (0.02, 0.2)), "dpsgd": ((0.8, 3), (0.005, 0.1))}
BUDGETS = Budgets(lifetime=1e6, run=1e6, period="month", period_epsilon=1e6)


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    sigmas, rates = RANGES[sys.argv[2] if len(sys.argv) > 2 else "dpsgd"]
    draw = random.Random(0)

    def asked(number: int) -> Charge:
        """Round ``number``, with its own (σ, q)."""
        event = PrivacyEvent(draw.uniform(*sigmas), draw.uniform(*rates), 4)
        return Charge("run", number, "train", (event,), "record", "a" * 64)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"

        def opened() -> FileLedger:
            return FileLedger(
                path, data_set="d", unit="record", delta=1e-5, budgets=BUDGETS, create=True
            )

        def one_more(ledger: FileLedger, number: int) -> None:
            ledger.charge(asked(number))
            ledger.store("run", number, "train", bytes(100_000))

        ledger = opened()
        timed(f"compose {rounds} rounds once", lambda: ledger.charge(*map(asked, range(rounds))))
        for more in range(5):
            timed("one round more", lambda: one_more(ledger, rounds + more))  # noqa: B023
        ledger.close()
        reopened: list[FileLedger] = []
        timed("open after a restart", lambda: reopened.append(opened()))
        timed("first round after it", lambda: one_more(reopened[0], rounds + 5))
        reopened[0].close()
        blocks = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}-composed*"))
        print(f"cache of composed blocks: {blocks / 1e6:.1f} MB (beside {cache_path(path).name})")
        timed("verify the chain", lambda: inspect(path))
        timed("verify and compose anew", lambda: inspect(path, recompose=True))


def timed(what: str, work: Callable[[], object]) -> None:
    """Print how long ``work`` takes."""
    start = time.perf_counter()
    work()
    print(f"{what:32s} {time.perf_counter() - start:8.3f} s", flush=True)


if __name__ == "__main__":
    main()
