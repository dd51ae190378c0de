"""What the coordinator does for a reply, with 1,000 sites and with 16,000: processor time.

    python benchmarks/speed/bookkeeping.py [--sites 1000 16000] [--rounds 3]

Head rounds on Banking77's records, ten at every site, in which a site's work is a constant, so that
what is left is charges and messages at the sites (worker processes) and, in this process, all
that the coordinator does: requests packed and sent, replies matched, unpacked, screened, added up
and measured, events and a checkpoint. Messages are real ones (simulation.messages "real"), by way
of the same exchange as over a network. Only this process's time counts. The last line is the time
of a reply at the most sites over that at the fewest; the target is at most 1.5.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from many_sites import BANKING, drawn
from rich.table import Table
from simulators import plan_of, work_is_constant

from lorica.common.display.console import Console


def coordinate(data: Path, sites: int, rounds: int) -> None:
    """Print this process's seconds in every head round but the first and the last."""
    import torch

    from lorica.server.rounds.loop import RoundLoop
    from lorica.simulations.run.simulate import Simulation

    torch.set_num_threads(1)  # none that wait and count
    work_is_constant()
    found: list[float] = []
    one_round = RoundLoop._one_round

    def timed(self: Any, round: int, state: Any) -> Any:
        begun = time.process_time()
        state = one_round(self, round, state)
        found.append(time.process_time() - begun)
        return state

    RoundLoop._one_round = timed  # type: ignore[method-assign]
    plan = plan_of(BANKING, sites, rounds + 3).replace(
        data={"train": str(data)}, simulation={"workers": 2, "messages": "real"}
    )
    with tempfile.TemporaryDirectory() as folder:
        Simulation(plan, Path(folder) / "run", Console(quiet=True)).run(report=False)
    print(json.dumps(found[2:-1]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, nargs=2, default=[1000, 16_000])
    parser.add_argument("--rounds", type=int, default=3, help="head rounds that count")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        coordinate(asked.side, asked.sites[0], asked.rounds)
        return
    if not (BANKING / "train.csv").is_file():
        sys.exit(f"{BANKING} holds no train.csv and test.csv.")
    table = Table(box=None, title="Coordinator, for every reply")
    table.add_column("sites", justify="right")
    table.add_column("processor time", justify="right")
    each = []
    with tempfile.TemporaryDirectory() as folder:
        for sites in asked.sites:
            data = Path(folder) / f"{sites}.csv"
            drawn(BANKING / "train.csv", data, 10 * sites)
            own = ["--side", str(data), "--sites", str(sites), "0", "--rounds", str(asked.rounds)]
            done = subprocess.run(
                [sys.executable, __file__, *own], capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(f"{sites} sites failed:\n{done.stdout[-500:]}\n{done.stderr[-2000:]}")
            seconds = statistics.median(json.loads(done.stdout.strip().splitlines()[-1]))
            each.append(seconds / sites)
            table.add_row(f"{sites:,}", f"{1e3 * each[-1]:.3f} ms")
    Console(width=100).print(table)
    print(f"bookkeeping ratio: {each[-1] / each[0]:.2f}")


if __name__ == "__main__":
    main()
