"""What one more round costs on a ledger of many entries, beside one of ten.

    python benchmarks/speed/ledger_speed.py [--entries 10000] [--repeats 20]
    python benchmarks/speed/ledger_speed.py --restart 1000    # and after a restart, and verified

A round is a charge and its answer with a reply of 100,000 bytes, in a file, with a budget of every
kind: two entries. Three ledgers: one run whose rounds use all units (the default recipe); one run
of sampled steps, all alike; many runs of 43 such rounds. The long and the short ledger take turns.
Seconds are the least of the repeats, for a busy machine and its disk make others longer; the ratio
is of processor seconds, and the last line has the largest. The target is at most 1.5.

With --restart, every round has its own σ and q: seconds for composing so many once, for one round
more, after a restart with the cache of composed blocks, and for verifying chain and ε.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from lorica.client.ledger import Budgets, Charge, FileLedger
from lorica.client.ledger.blocks import cache_path
from lorica.client.ledger.verify import inspect
from lorica.common.display.console import Console
from lorica.common.privacy.event import PrivacyEvent

BUDGETS = Budgets(lifetime=1e6, run=1e6, period="month", period_epsilon=1e6)
PLAN_EPSILON = 1e6
SHORT = 10
RUN = 43
BATCH = 200
WHOLE, ALIKE, RUNS = "one run, all units", "one run, sampled", f"runs of {RUN} rounds, sampled"


def charge_of(case: str, number: int) -> Charge:
    """The charge of a ledger's round ``number``."""
    run, round = ("run", number) if case != RUNS else (f"run {number // RUN}", number % RUN)
    event = PrivacyEvent(20.0, 1.0, 1) if case == WHOLE else PrivacyEvent(2.0, 0.05, 4)
    return Charge(run, round, "train", (event,), "record", "a" * 64, PLAN_EPSILON, 1e-5)


def opened(path: Path) -> FileLedger:
    """A ledger in a file."""
    return FileLedger(path, data_set="d", unit="record", delta=1e-5, budgets=BUDGETS, create=True)


def answer(ledger: FileLedger, charge: Charge) -> None:
    """One round: charge, answer."""
    ledger.charge(charge)
    ledger.store(charge.run, charge.round, charge.kind, bytes(100_000))


class Grown:
    """A ledger with so many entries, and its next round."""

    def __init__(self, path: Path, case: str, entries: int) -> None:
        self._case, self._next = case, 0
        self._ledger = opened(path)
        while self._next < entries // 2:
            first = charge_of(case, self._next)
            asked = [charge_of(case, n) for n in range(self._next, entries // 2)]
            alike = [charge for charge in asked[:BATCH] if charge.run == first.run]
            self._ledger.charge(*alike)
            for charge in alike:
                self._ledger.store(charge.run, charge.round, charge.kind, b"reply")
            self._next += len(alike)
        self.wall: list[float] = []
        self.processor: list[float] = []

    def one_more(self) -> None:
        """Time one round."""
        charge, wall, used = charge_of(self._case, self._next), time.perf_counter(), _used()
        answer(self._ledger, charge)
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(_used() - used)
        self._next += 1

    def close(self) -> None:
        """Close its files."""
        self._ledger.close()


def _used() -> float:
    return time.process_time()


def compare(entries: int, repeats: int) -> None:
    """Print what a round costs at both lengths."""
    table = Table(box=None, title=f"Charge and answer of one round, at {SHORT} and {entries:,}")
    for head in ("ledger", f"ms at {SHORT}", f"ms at {entries:,}", "CPU ms", "CPU ms", "ratio"):
        table.add_column(head, justify="left" if head == "ledger" else "right")
    ratios = []
    for case in (WHOLE, ALIKE, RUNS):
        with tempfile.TemporaryDirectory() as folder:
            pair = [Grown(Path(folder) / f"{n}.sqlite", case, n) for n in (SHORT, entries)]
            for _ in range(repeats):
                for ledger in pair:
                    ledger.one_more()
            for ledger in pair:
                ledger.close()
        short, long = (min(ledger.processor) for ledger in pair)
        ratios.append(long / short)
        walls = [f"{min(ledger.wall) * 1e3:.1f}" for ledger in pair]
        table.add_row(case, *walls, f"{short * 1e3:.2f}", f"{long * 1e3:.2f}", f"{ratios[-1]:.2f}")
    Console(width=110).print(table)
    print(f"ledger ratio: {max(ratios):.2f}")


def after_a_restart(rounds: int) -> None:
    """Print what a history of different rounds costs, opened anew and verified, too."""
    draw = random.Random(0)

    def asked(number: int) -> Charge:
        event = PrivacyEvent(draw.uniform(0.8, 3), draw.uniform(0.005, 0.1), 4)
        return Charge("run", number, "train", (event,), "record", "a" * 64)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        ledger = opened(path)
        timed(f"compose {rounds} rounds once", lambda: ledger.charge(*map(asked, range(rounds))))
        for more in range(5):
            timed("one round more", lambda: answer(ledger, asked(rounds + more)))  # noqa: B023
        ledger.close()
        again: list[FileLedger] = []
        timed("open after a restart", lambda: again.append(opened(path)))
        timed("first round after it", lambda: answer(again[0], asked(rounds + 5)))
        again[0].close()
        blocks = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}-composed*"))
        print(f"cache of composed blocks: {blocks / 1e6:.1f} MB (beside {cache_path(path).name})")
        timed("verify the chain", lambda: inspect(path))
        timed("verify and compose anew", lambda: inspect(path, recompose=True))


def timed(what: str, work: Callable[[], object]) -> None:
    """Print how long ``work`` takes."""
    start = time.perf_counter()
    work()
    print(f"{what:32s} {time.perf_counter() - start:8.3f} s", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=10_000, help="of the long ledger")
    parser.add_argument("--repeats", type=int, default=20, help="rounds timed of each")
    parser.add_argument("--restart", type=int, metavar="ROUNDS", help="different rounds, instead")
    asked = parser.parse_args()
    if asked.restart:
        after_a_restart(asked.restart)
    else:
        compare(asked.entries, asked.repeats)


if __name__ == "__main__":
    main()
