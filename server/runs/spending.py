"""ε that sites have spent round by round, from public figures: the plan and who was asked when.

This is what the plan *declares*: a site that keeps its guarantee spends exactly this (a site may
add more noise, and spend less). The site's own ledger is the record; the coordinator cannot see
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lorica.common.accounting import epsilon
from lorica.common.errors import LoricaError
from lorica.common.plan import RunPlan
from lorica.common.site_privacy import RunPrivacy, public_privacy, run_privacy
from lorica.server.records import RoundRecord

CostOf = Callable[[str, int], RunPrivacy | None]
"""(site, declared weight) -> what the run costs there; None when that cannot be known."""


class Spending:
    """Follows the rounds of one run.

    A site that was asked in a round counts as having spent it, whatever came of it: the charge is
    written before the private step runs. Where σ depends on the site's own number of units (mode
    "local"), the declared weight stands for it; of sites that declare none nothing is said.
    """

    def __init__(self, plan: RunPlan, cost_of: CostOf | None = None) -> None:
        """``cost_of``: what the run costs at a site, where more is known than the plan."""
        self._plan, self._cost_of = plan, cost_of or _declared(plan)
        self._costs: dict[tuple[str, int], RunPrivacy | None] = {}
        self._asked: dict[str, list[int]] = {}
        self._weights: dict[str, int] = {}

    def after(self, record: RoundRecord) -> dict[str, float]:
        """Site -> ε spent up to this round, of the sites asked in it; empty without privacy."""
        if not self._plan.privacy.private or record.round < 1:
            return {}
        found: dict[str, float] = {}
        same: dict[tuple[object, tuple[int, ...]], float] = {}
        for entry in record.sites:
            asked = self._asked.setdefault(entry.site, [])
            asked.append(record.round)
            cost = self._cost(entry.site, entry.weight)
            if cost is None:
                continue
            key = ((cost.stages, cost.evaluation), tuple(asked))
            if key not in same:
                evaluations = len(set(self._plan.evaluation_rounds).intersection(asked))
                events = cost.events(asked, evaluations)
                same[key] = epsilon(events, self._plan.privacy.delta)
            if math.isfinite(same[key]):
                found[entry.site] = same[key]
        return found

    def skip(self, record: RoundRecord) -> None:
        """Count a round without working out its ε, as when a run resumes after it."""
        for entry in record.sites:
            if record.round >= 1:
                self._asked.setdefault(entry.site, []).append(record.round)

    @classmethod
    def over(
        cls, plan: RunPlan, records: Sequence[RoundRecord], cost_of: CostOf | None = None
    ) -> dict[int, dict[str, float]]:
        """Round -> site -> ε, over all records of a run."""
        spending = cls(plan, cost_of)
        return {record.round: spending.after(record) for record in records}

    def _cost(self, site: str, weight: int) -> RunPrivacy | None:
        weight = weight or self._weights.get(site, 0)
        self._weights[site] = weight
        key = (site, weight)
        if key not in self._costs:
            self._costs[key] = self._cost_of(site, weight)
        return self._costs[key]


def _declared(plan: RunPlan) -> CostOf:
    by_weight: dict[int, RunPrivacy | None] = {}

    def cost(site: str, weight: int) -> RunPrivacy | None:
        local = plan.training.mode == "local"
        if local and weight <= 0:
            return None
        key = weight if local else 0
        if key not in by_weight:
            try:
                by_weight[key] = run_privacy(plan, weight) if local else public_privacy(plan)
            except LoricaError:  # no such site could take part: the weight is not its units
                by_weight[key] = None
        return by_weight[key]

    return cost
