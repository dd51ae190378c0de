"""A sealed sum: processor seconds and bytes per site and at the coordinator.

    python benchmarks/speed/secure_sum.py [sites,values ...]

By default 10, 100 and 1,000 sites with 10^5 and 10^6 values, of which a tenth may drop out. A
site's seconds are those of its noise, its masked vector and its part in opening the sum, once its
keys are agreed on (once a run, told apart); they are measured on as many sites as make no more than
about 10^8 masks' values, at least three. The coordinator's are those of all sites: taking in a
vector is measured on those sites, opening the sum on as many masks as all of them have. Everything
runs the real code; the sum is checked where all sites were run. The targets are at 10 sites and
10^5 values: at most 0.2 s a site, and 2 times the bytes of float32.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time

import numpy as np
from rich.table import Table

from lorica.client.secure_sum.memory import KeptInMemory
from lorica.client.secure_sum.part import PartInSum
from lorica.common.display.console import Console
from lorica.common.secure_sum.discrete_gaussian import discrete_gaussian
from lorica.common.secure_sum.grid import grid
from lorica.common.secure_sum.identity import Identity
from lorica.common.secure_sum.keys import RunKeys
from lorica.common.secure_sum.masks import add_mask, key_stream, mask_key
from lorica.common.secure_sum.one_sum import OneSum
from lorica.common.secure_sum.roster import Roster
from lorica.common.secure_sum.terms import terms
from lorica.server.secure_sum.collector import SumCollector

SIZES = [(sites, values) for sites in (10, 100, 1_000) for values in (100_000, 1_000_000)]
RUN, PLAN = "bench", "f" * 64
MASKED = 10**8
"""Values of masks that the measured sites make in all."""
SIGMA = 8.0


def stream(count: int) -> np.ndarray:
    """Uniform words from a fresh key."""
    return np.frombuffer(key_stream(os.urandom(32), 8 * count), dtype="<u8")


def measure(sites: int, values: int) -> tuple[str, ...]:
    """One row of the table."""
    numbers = terms(sites, sites - sites // 10)
    shape = grid(values, 1.0, SIGMA, honest=numbers.honest, sites=sites)
    keys = [
        RunKeys(Identity.from_seed(hashlib.sha256(b"%d" % n).digest()), RUN, PLAN, f"site-{n:05d}")
        for n in range(sites)
    ]
    roster = Roster.of([one.card for one in keys])
    one = OneSum.of(
        roster, numbers, run=RUN, fingerprint=PLAN, round=1, kind="train", values=values,
        bits=shape.bits,
    )  # fmt: skip
    roster.check(RUN, PLAN)
    measured = min(sites, max(3, MASKED // (values * numbers.neighbours)))
    for n in range(measured):  # once a run: agree on a secret with every neighbour
        for other in one.graph.of(n):
            keys[n].pair(one.digest, roster.cards[other])
    collector = SumCollector(one)
    mine, theirs, up, total = [], 0.0, 0, np.zeros(values, dtype=np.int64)
    vectors, parts = [], []
    for n in range(measured):
        began = time.process_time()
        vector = discrete_gaussian(values, shape.variance, stream)
        part = PartInSum(one, keys[n], KeptInMemory())
        message = part.mask(vector)
        mine.append(time.process_time() - began)
        began = time.process_time()
        collector.add(n, message)
        theirs += time.process_time() - began
        up = len(message)
        total += vector
        vectors.append(vector)
        parts.append(part)
    theirs *= sites / measured
    began = time.process_time()
    if measured == sites:
        requests = collector.openings()
        while True:
            for n, request in requests.items():
                at = time.process_time()
                reply = parts[n].open(vectors[n], request)
                mine[n] += time.process_time() - at
                began += time.process_time() - at  # not the coordinator's
                collector.take(n, reply)
            if collector.openable:
                break
            requests = collector.openings()
        found = collector.open()
        assert (found == total).all()
        theirs += time.process_time() - began
        up += len(reply)
    else:
        opened = np.zeros(values, dtype=np.uint64)
        count = min(sites, 30)
        for n in range(count):
            add_mask(opened, mask_key(one.digest, bytes([n]) * 32), -1)
        theirs += (time.process_time() - began) * sites / count
    return (
        f"{sites:,}",
        f"{values:,}",
        f"{numbers.neighbours}",
        f"{np.median(mine):.3f}",
        f"{up:,}",
        f"{up / (4 * values):.2f}",
        f"{theirs:.2f}",
        f"{up * sites:,}",
        "all" if measured == sites else f"{measured} sites",
    )


def main() -> None:
    """Print the table."""
    sizes = [tuple(int(n) for n in text.split(",")) for text in sys.argv[1:]] or SIZES
    table = Table(
        "sites", "values", "neighbours", "s a site", "bytes a site", "x float32",
        "s coordinator", "bytes in", "measured on", title="A sealed sum: processor seconds, bytes",
    )  # fmt: skip
    for sites, values in sizes:
        table.add_row(*measure(sites, values))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
