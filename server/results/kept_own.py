"""How many sites keep a model of their own, from bits by randomised response.

Of n answers y say so. Each is the truth with probability p = 1 / (1 + exp(-ε)), so of k sites whose
guards do, E[y] = k·p + (n - k)·(1 - p), and (y - n·(1 - p)) / (2p - 1) estimates k without bias,
with a standard error of √(n·p·(1 - p)) / (2p - 1) whatever k is. The interval holds every k that
does not make y, or less, or y, or more, rarer than 2.5 % by the exact distribution, the sum of two
binomial ones.

Post-processing of what sites noised: no further ε. A site that lies moves the estimate by no more
than 1 / (2p - 1), as much as one that is honest and unlucky.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from lorica.common.privacy.response import truth

_TAIL = 0.025


@dataclass(frozen=True)
class KeptOwn:
    """What a run's bits say, all in all."""

    epsilon: float
    """ε of each bit."""
    asked: int
    """Sites."""
    answered: int
    said: int
    """Of those that answered, how many bits say that the site keeps its own; noised."""
    estimate: float
    """Of how many it is true, without bias: it may lie below 0 or above ``answered``."""
    low: int
    high: int
    """95 % interval of the true number."""

    @property
    def sentence(self) -> str:
        """For people."""
        about = min(max(self.estimate, 0.0), float(self.answered))
        silent = self.asked - self.answered
        rest = f" {silent} of {self.asked} did not answer." if silent else ""
        return (
            f"About {about:.1f} of {self.answered} sites (95 % interval: {self.low} to "
            f"{self.high}) keep a model of their own, because the federation's is worse there "
            f"beyond chance: by one bit of each, randomised with ε = {self.epsilon:g}, which is "
            f"part of the run's.{rest}"
        )

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        return asdict(self)

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> KeptOwn | None:
        """The inverse of :meth:`as_json`; None of nothing."""
        return KeptOwn(**found) if found else None


class _Round(Protocol):
    """A round in a list or in the store."""

    @property
    def kept_own(self) -> dict[str, Any]: ...


def kept_own_said(rounds: Sequence[_Round]) -> str:
    """The sentence of a run with these rounds; empty where no bits were told."""
    found = KeptOwn.from_json(rounds[-1].kept_own) if rounds else None
    return found.sentence if found else ""


def kept_own(bits: Sequence[bool], asked: int, epsilon: float) -> KeptOwn:
    """Make of the bits what they say.

    Args:
        bits: of sites that answered; True says that the site keeps its own. At least one.
        asked: how many sites were asked.
        epsilon: ε of each.
    """
    count, said, right = len(bits), sum(bits), truth(epsilon)
    estimate = (said - count * (1 - right)) / (2 * right - 1)
    # y grows with k stochastically: the k that are not rejected are neighbours.
    low = _first(count, lambda k: float(_chances(count, k, right)[said:].sum()) > _TAIL)
    above = _first(count, lambda k: float(_chances(count, k, right)[: said + 1].sum()) <= _TAIL)
    return KeptOwn(epsilon, asked, count, said, estimate, min(low, count), max(above - 1, 0))


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """The least k from 0 to ``count`` that ``holds``, ``count`` + 1 where none does; if it holds
    for one it holds for all above."""
    low, high = 0, count + 1
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _chances(count: int, true: int, right: float) -> np.ndarray:
    """Probability of every number of bits that say so, from 0 to ``count``."""
    from scipy.stats import binom

    yes = binom.pmf(np.arange(true + 1), true, right)
    no = binom.pmf(np.arange(count - true + 1), count - true, 1 - right)
    return np.convolve(yes, no)
