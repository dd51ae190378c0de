"""A whole sum in one process: identities, roster, parts and collector."""

from __future__ import annotations

import hashlib

import numpy as np

from lorica.client.secure_sum.memory import KeptInMemory, SumMemory
from lorica.client.secure_sum.part import PartInSum
from lorica.common.secure_sum.identity import Identity
from lorica.common.secure_sum.keys import RunKeys
from lorica.common.secure_sum.one_sum import OneSum
from lorica.common.secure_sum.roster import Roster
from lorica.common.secure_sum.terms import terms
from lorica.server.secure_sum.collector import SumCollector

RUN, PLAN = "run-1", "f" * 64


def run_keys(sites: int, run: str = RUN) -> list[RunKeys]:
    """Keys of sites whose identities are the same in every call."""
    seeds = [hashlib.sha256(b"site %d" % number).digest() for number in range(sites)]
    return [
        RunKeys(Identity.from_seed(seed), run, PLAN, f"site-{number:04d}")
        for number, seed in enumerate(seeds)
    ]


class Federation:
    """Sites with vectors, and what they say in one sum."""

    def __init__(
        self,
        sites: int,
        *,
        honest: int,
        fewest: int = 1,
        values: int = 20,
        round: int = 1,
        bits: int = 48,
        vectors: np.ndarray | None = None,
    ) -> None:
        self.keys = run_keys(sites)
        self.roster = Roster.of([keys.card for keys in self.keys])
        self.one = OneSum.of(
            self.roster,
            terms(sites, honest, fewest),
            run=RUN,
            fingerprint=PLAN,
            round=round,
            kind="train",
            values=values,
            bits=bits,
        )
        drawn = np.random.default_rng(0).integers(-(2**40), 2**40, (sites, values))
        self.vectors = drawn if vectors is None else vectors
        self.memories: list[SumMemory] = [KeptInMemory() for _ in range(sites)]

    def part(self, site: int, one: OneSum | None = None) -> PartInSum:
        """A site's part in the sum, or in another one."""
        return PartInSum(one or self.one, self.keys[site], self.memories[site])

    def masked(self, site: int) -> bytes:
        """Its first message."""
        return self.part(site).mask(self.vectors[site])

    def opened(self, site: int, request: bytes) -> bytes:
        """Its second."""
        return self.part(site).open(self.vectors[site], request)

    def run(
        self, dead_first: frozenset[int] = frozenset(), dead_second: frozenset[int] = frozenset()
    ) -> np.ndarray:
        """The whole protocol; some sites never answer the first, some not the second request."""
        collector = SumCollector(self.one)
        for site in range(len(self.keys)):
            if site not in dead_first:
                collector.add(site, self.masked(site))
        collector.fix()
        if collector.asks_agreement:
            for site, request in collector.openings().items():
                if site not in dead_second:
                    collector.take(site, self.opened(site, request))
        for site, request in collector.openings().items():
            if site not in dead_second:
                collector.take(site, self.opened(site, request))
        return collector.open()
