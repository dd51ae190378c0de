"""The sums of a plan with ``privacy.trust = "sum"``: their numbers and their integer grids.

Coordinator and sites compute them alike, from the plan and the number of sites that are asked.
"""

from __future__ import annotations

from lorica.common.plan import RunPlan
from lorica.common.plan.stages import unit_bound
from lorica.common.privacy.of_plan import public_privacy
from lorica.common.privacy.shared_noise import (
    Figures,
    SharedNoise,
    figures,
    require_close,
)
from lorica.common.secure_sum.grid import Grid, grid
from lorica.common.secure_sum.terms import Terms, terms


def sum_terms(plan: RunPlan, sites: int) -> Terms:
    """The numbers of a sum over so many sites.

    Raises:
        LoricaError: LOR-103 the plan asks for what so many sites cannot give.
    """
    return terms(sites, plan.honest_sites, min(plan.rounds.minimum_sites, sites))


def shared_noise(plan: RunPlan, numbers: Terms | None = None) -> SharedNoise:
    """Among whom noise is shared in a sum; of the plan's smallest sums without ``numbers``."""
    least = max(plan.honest_sites, plan.rounds.minimum_sites)
    return SharedNoise(plan.honest_sites, numbers.threshold if numbers else least)


def run_figures(plan: RunPlan, numbers: Terms | None = None) -> Figures:
    """The three ε of a whole run at the plan's δ, with the noise of the smallest sums there can
    be: over ``numbers``' threshold of sites, or over the fewest that the plan lets be."""
    events = public_privacy(plan).events(plan.rounds.count, len(plan.evaluation_rounds))
    return figures(events, plan.privacy.delta, shared_noise(plan, numbers))


def training_grid(plan: RunPlan, round: int, values: int, sites: int) -> Grid:
    """The grid of a round's sums of ``values`` values.

    Raises:
        LoricaError: LOR-406 there is none, or it is too coarse.
    """
    sigma = public_privacy(plan).of_round(round).noise_multiplier
    return _checked(plan, grid(
        values, unit_bound(plan, round), sigma, honest=plan.honest_sites, sites=sites
    ))  # fmt: skip


def evaluation_grid(plan: RunPlan, values: int, bound: float, sites: int) -> Grid:
    """The same of an evaluation's counts, each unit's at most ``bound`` in L2 norm."""
    event = public_privacy(plan).evaluation
    assert event is not None
    found = grid(values, bound, event.noise_multiplier, honest=plan.honest_sites, sites=sites)
    return _checked(plan, found)


def _checked(plan: RunPlan, found: Grid) -> Grid:
    """The grid, if all sums of a run on such grids are near enough to Gaussian mechanisms."""
    require_close(
        plan.privacy.epsilon,
        plan.privacy.delta,
        variance=found.variance,
        honest=found.honest,
        draws=found.values * (plan.rounds.count + len(plan.evaluation_rounds)),
    )
    return found
