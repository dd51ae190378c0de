"""Which sites a round asks, how many of them it wants, and how many suffice.

The draw follows from the run's id and the round, so a run that is taken up again asks the same
sites. It is known to whoever knows these: no privacy amplification by sampling sites is claimed,
and every site's σ is calibrated as if it were asked in every round.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorica.common.plan.course import RoundsPlan

_ROUNDING = 1e-9  # so that 0.1 · 30 sites are 3


@dataclass(frozen=True)
class Selection:
    """One round's sites."""

    asked: list[int]
    """Positions of the sites that are asked, ascending."""
    wanted: int
    """So many updates end the round."""
    sufficient: int
    """So many updates must have come at the deadline."""


def select(rounds: RoundsPlan, run: str, round: int, sites: Sequence[tuple[str, int]]) -> Selection:
    """Draw a round's sites.

    Args:
        rounds: fraction, over-provisioning, quorum, minimum and way of drawing.
        run: Lorica's run id.
        round: its number.
        sites: name and declared number of units (0: none declared) of every ready site.

    Returns:
        The selection; all sites when there are no more than wanted.
    """
    share = math.ceil(rounds.fraction * len(sites) - _ROUNDING)
    wanted = min(len(sites), max(rounds.minimum_sites, share))
    count = min(len(sites), math.ceil(wanted * (1 + rounds.over_provision) - _ROUNDING))
    quorum = math.ceil(rounds.quorum * wanted - _ROUNDING)
    sufficient = max(rounds.minimum_sites, quorum)
    if count == len(sites):
        return Selection(list(range(count)), wanted, sufficient)
    by_name = sorted(range(len(sites)), key=lambda position: sites[position][0])
    weights = np.array([sites[position][1] for position in by_name], dtype=float)
    if rounds.selection == "uniform" or not (weights > 0).all():
        weights = np.ones(len(sites))
    digest = hashlib.sha256(f"selection/{run}/{round}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "big"))
    drawn = generator.choice(len(sites), size=count, replace=False, p=weights / weights.sum())
    return Selection(sorted(by_name[i] for i in drawn), wanted, sufficient)
