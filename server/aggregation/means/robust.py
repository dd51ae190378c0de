"""Robust rules: which updates, and how much of them, the method gets to see.

Each works with every method, before its recombination, on whole updates as flat vectors (head
and LoRA factors together, so the part with the larger learning rate weighs most in distances
and norms):

==============  =============================================  ===========================
rule            the method gets                                withstands, of n sites
==============  =============================================  ===========================
median          one update, the median of every value          fewer than n / 2
trimmed-mean    one update, the mean of every value without    ⌊share · n⌋ at either end
                the ⌊share · n⌋ smallest and largest
krum            the n − f updates closest to their n − f − 2   f, for n >= 2·f + 3
                nearest neighbours (multi-Krum)
norm-bound      all updates, none longer than the bound        limits each one's pull
==============  =============================================  ===========================

They count every site the same: a weight is what a site declares, and a faulty one may declare
any. They withstand crude faults and attacks; colluding sites that stay within the others' spread
still pull. Where sites' data differ much, honest sites are cut off as well.

Exactness: after "krum" and "norm-bound" the method is as exact as it says, over the updates that
it sees. "median" and "trimmed-mean" work on A and B apart, so that their product is no mean of
products unless the method trains one factor a round; they are refused for "fedex",
"flora" and "flexlora".

**Memory grows with the number of sites**: all updates of a round are held until it ends.

Bytes: none. Epsilon: none; what sites send is noised already. The noise of all sites remains in
the result: the median of n Gaussians has π/2 times the variance of their mean.

Median and trimmed mean are Flower's (``flwr.server.strategy.aggregate``), and so is the choice
of multi-Krum (``flwr.serverapp.strategy.multikrum``).

Sources: Yin et al. (median, trimmed mean; arXiv 1803.01498), Blanchard et al. (Krum; arXiv
1703.02757), Sun et al. (norm bound; arXiv 1911.07963).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection
from typing import ClassVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.server.strategy.aggregate import aggregate_median, aggregate_trimmed_avg
from flwr.serverapp.strategy.multikrum import select_multikrum

from lorica.common.adapter.state import State
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.server.aggregation.aggregator import Aggregator
from lorica.server.aggregation.form import check_form, update_norm

Updates = list[State]


class Robust(Aggregator):
    """Holds a round's updates; when it ends, the method's own rule sees what the plan's robust
    rule makes of them. See the module."""

    exact: ClassVar[bool] = False

    def __init__(
        self,
        plan: RunPlan,
        start: State,
        names: Collection[str],
        method: Callable[[], Aggregator],
    ) -> None:
        """
        Args:
            plan: names the robust rule and its parameters.
            start: the global state that the round starts from.
            names: the tensors that the round trains.
            method: makes a fresh aggregator of the method's own rule.
        """
        self._plan, self._start, self._names, self._method = plan, start, list(names), method
        self._held: Updates = []

    def add(self, update: State, weight: float) -> None:
        """Hold one site's update. A weight of 0 leaves it out; others count the same."""
        if not (math.isfinite(weight) and weight >= 0):
            raise LoricaError(
                Code.UPDATE_REFUSED, f"The update's weight is {weight}, expected a number >= 0."
            )
        check_form(update, self._start, self._names)
        if weight:
            self._held.append(
                {name: update[name].detach().to(torch.float32, copy=True) for name in self._names}
            )

    def finish(self) -> State:
        """As of the method.

        Raises:
            LoricaError: LOR-503 when there are too few updates for the rule.
        """
        rule, fewest = self._plan.aggregation, max(1, self._plan.robust_minimum)
        if len(self._held) < fewest:
            raise LoricaError(
                Code.TOO_FEW_SITES,
                f'aggregation.robust "{rule.robust}" needs {fewest} updates, there are '
                f"{len(self._held)}.",
            )
        method = self._method()
        for update in self._seen():
            method.add(update, 1.0)
        state = method.finish()
        self.memory = method.memory
        return state

    def _seen(self) -> Updates:
        """What the method gets to see."""
        rule = self._plan.aggregation
        if rule.robust == "median":
            return [self._together(aggregate_median)]
        if rule.robust == "trimmed-mean":
            return [self._together(lambda held: aggregate_trimmed_avg(held, rule.trim_share))]
        if rule.robust == "krum":
            return krum(self._held, faulty=rule.faulty_sites)
        return within_norm(self._held, rule.norm_bound)

    def _together(self, rule: Callable[[list[tuple[list[np.ndarray], int]]], list]) -> State:
        held = [([update[name].numpy() for name in self._names], 1) for update in self._held]
        found = rule(held)
        return {
            name: torch.from_numpy(np.asarray(value, dtype=np.float32))
            for name, value in zip(self._names, found, strict=True)
        }


def krum(updates: Updates, *, faulty: int) -> Updates:
    """The n − ``faulty`` updates with the least sum of squared distances to their n − ``faulty``
    − 2 nearest neighbours, in the order given."""
    contents = [
        RecordDict({"update": ArrayRecord({"flat": Array(_flat(update))})}) for update in updates
    ]
    chosen = select_multikrum(contents, faulty, len(updates) - faulty)
    kept = {id(content) for content in chosen}
    return [
        update for update, content in zip(updates, contents, strict=True) if id(content) in kept
    ]


def within_norm(updates: Updates, bound: float) -> Updates:
    """The updates, longer ones scaled down to ``bound``; 0: to the median of their norms."""
    norms = [update_norm(update) for update in updates]
    bound = bound or statistics.median(norms)
    return [
        update
        if norm <= bound
        else {name: tensor * (bound / norm) for name, tensor in update.items()}
        for update, norm in zip(updates, norms, strict=True)
    ]


def _flat(update: State) -> np.ndarray:
    return np.concatenate([tensor.double().flatten().numpy() for tensor in update.values()])
