"""ε that sites have spent round by round, from public figures: the plan and who was asked when.

This is what the plan *declares*: a site that keeps its guarantee spends exactly this (a site may
add more noise, and spend less). The site's own ledger is the record; the coordinator cannot see
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from lorica.common.errors import LoricaError
from lorica.common.plan import RunPlan
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.of_plan import RunPrivacy, public_privacy, run_privacy
from lorica.server.results.round import RoundRecord, SiteRound

CostOf = Callable[[str, int], RunPrivacy | None]
"""(site, declared weight) -> what the run costs there; None when that cannot be known."""


class Spending:
    """Follows the rounds of one run.

    A site that was asked to train in a round counts as having spent it, whatever came of it: the
    charge is written before the private step runs. Evaluations ask every site that takes part, so
    all up to now count at every site, too; one that joined later has spent less. Where σ depends
    on the site's own number of units (mode "local"), the declared weight stands for it; of sites
    that declare none nothing is said.
    """

    def __init__(self, plan: RunPlan, cost_of: CostOf | None = None) -> None:
        """``cost_of``: what the run costs at a site, where more is known than the plan."""
        self._plan, self._cost_of = plan, cost_of or _declared(plan)
        self._costs: dict[tuple[str, int], RunPrivacy | None] = {}
        self._asked: dict[str, list[int]] = {}
        self._weights: dict[str, int] = {}
        self._spent: dict[tuple[PrivacyEvent, ...], float] = {}
        self._told = False

    def meet(self, sites: Iterable[SiteRound]) -> None:
        """Note the sites that say that they take part: evaluations ask them, too."""
        for site in sites:
            if site.status == "ok":
                self._asked.setdefault(site.site, [])
                self._weights[site.site] = site.weight or self._weights.get(site.site, 0)

    def after(self, record: RoundRecord) -> dict[str, float]:
        """Site -> ε spent up to this round; empty without privacy.

        Of the sites asked to train in it; after an evaluation, and at first, of all known.
        """
        if not self._plan.privacy.private or record.round < 1:
            return {}
        self.skip(record)
        weights = {entry.site: entry.weight for entry in record.sites}
        bit = record.round + 1 == self._plan.benefit_round  # asked for after the last round
        every = not self._told or bit or record.round in self._plan.evaluation_rounds
        self._told = True
        evaluations = self._plan.evaluations_until(record.round)
        found: dict[str, float] = {}
        for site in self._asked if every else weights:
            cost = self._cost(site, weights.get(site, 0))
            if cost is not None:
                events = tuple(cost.events(self._asked[site], evaluations, benefit=bit))
                if events not in self._spent:
                    self._spent[events] = epsilon(events, self._plan.privacy.delta)
                if events and math.isfinite(self._spent[events]):
                    found[site] = self._spent[events]
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
        for record in records:
            spending.meet(record.sites)
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
