"""SiteFigures: what a site says of itself in numbers, by its own decision and never by counting."""

from __future__ import annotations

from dataclasses import dataclass

from lorica.client.admission.readiness import require_figure
from lorica.client.config.site import SiteConfig
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import METHODS


@dataclass(frozen=True)
class SiteFigures:
    """A site's public figures. Those of a simulated site may be the true ones."""

    units: int | None = None
    """The number of its units that noise and sample rates are computed from. None: the true number
    of the plan's units, which makes that number public (simulations)."""
    weight: int | None = None
    """The number that it declares as its weight in the average; 0 declares none, None ``units``."""
    rank: int | None = None
    """The largest LoRA rank that it trains at, where the method lets sites choose; None the
    plan's."""
    unit: str | None = None
    """The only unit of privacy that it knows; None knows the plan's."""
    tells_budget: bool = False
    """Whether it says how much of its lifetime budget is left."""

    @staticmethod
    def of(config: SiteConfig) -> SiteFigures:
        """The figures that a site's policy fixes.

        Raises:
            LoricaError: LOR-409 there is no figure for the number of units.
        """
        require_figure(config)
        policy = config.policy
        return SiteFigures(
            units=policy.sampling_units,
            weight=policy.declared_units,
            rank=policy.maximum_rank,
            unit=policy.unit,
            tells_budget=policy.budget == "declared",
        )

    def rank_of(self, plan: RunPlan) -> int:
        """The LoRA rank that the site trains a plan at."""
        if self.rank is None or not METHODS[plan.aggregation.method].any_rank:
            return plan.adapter.rank
        return min(plan.adapter.rank, self.rank)
