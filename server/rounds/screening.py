"""Refuse an update that cannot be right, before it can touch the aggregate.

An update is a site's value minus the global value of every tensor that the method trains. One
non-finite number in it would poison the global adapter for all sites, so an update is checked
whole and refused whole. :func:`check_form` is the one check of form: :func:`screen` and every
aggregator's ``add`` call it.

Screening reads only what a site has already noised and sent; it costs no epsilon. It catches
faults and crude attacks, not an update that is plausible and wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from lorica.common.adapter.layer_rates import layer_factors
from lorica.common.adapter.state import State
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import METHODS
from lorica.common.plan.stages import Stage, returned, stage_of, unit_bound
from lorica.common.plan.tensors import Part, part_of
from lorica.common.privacy.of_plan import public_privacy
from lorica.common.wire.declared import believed_units
from lorica.common.wire.rounding import LARGEST_ERROR
from lorica.server.aggregation.form import _refused, check_form, update_norm

_ADAM_STEP = 3.17  # (1 - 0.9) / sqrt(1 - 0.999), rounded up
_UNDECLARED = 1e6  # units that a site may have that declares none
_NOISE = 2.0  # times the expected norm of the noise: far beyond chance


def screen(
    update: State, start: State, trained: Collection[str], *, max_norm: float | None
) -> float:
    """The update's L2 norm, if it may be aggregated; raises otherwise.

    Args:
        update: values for exactly the tensors that the round trains.
        start: the global state that the round started from, all tensors.
        trained: names of the tensors that the round trains.
        max_norm: largest L2 norm accepted for the whole update, in units of the weights; the
            noise that private sites add counts towards it. None sets no bound.

    Raises:
        LoricaError: LOR-502 for wrong names, shapes or dtypes, for NaN or infinite values, and
            for an update longer than ``max_norm``.
    """
    norm = check_form(update, start, trained)
    if max_norm is not None and not norm <= max_norm:  # also refuses when max_norm is NaN
        raise _refused(f"The update's L2 norm is {norm:.4g}, above the limit of {max_norm:.4g}.")
    return norm


def honest_norm(plan: RunPlan, start: State, round: int) -> float | None:
    """The largest L2 norm that a round of local steps can give an update; None for rounds whose
    updates are sums, which grow with the number of records that a site has (:func:`longest_sum`).

    Adam moves no value by more than (1 - β₁)/√(1 - β₂) learning rates in a step (Kingma and Ba
    2015, section 2.1), whatever the gradients and the noise; so no honest update of T steps is
    longer than 3.17 · T · √(Σ values · rate²), at every layer's own rate. Under "flexlora" and
    "flora" a site of lower rank also turns and cuts the factors it was sent, by no more than twice
    their length. Rounding moves a value by at most ``LARGEST_ERROR`` of the largest one of its
    tensor.
    """
    if stage_of(plan, round) is not Stage.LOCAL:
        return None
    training, names = plan.training, returned(plan, round, start)
    squares, factor = 0.0, layer_factors(start, training.layer_decay)
    for name in names:
        head = part_of(name) is Part.HEAD
        rate = training.head_learning_rate if head else training.learning_rate
        squares += start[name].numel() * (factor[name] * rate) ** 2
    rounding = LARGEST_ERROR[plan.wire.update]
    reach = _ADAM_STEP * training.local_steps * math.sqrt(squares) * (1 + rounding)
    if METHODS[plan.aggregation.method].any_rank:
        factors = {name: start[name] for name in names if part_of(name) is not Part.HEAD}
        values = sum(tensor.numel() for tensor in factors.values())
        reach += 2 * update_norm(factors) * (1 + rounding * math.sqrt(values))
    return reach


def longest_sum(plan: RunPlan, start: State, round: int) -> Callable[[int], float]:
    """The largest L2 norm of a sum over a site's units that is believed, by what it declares.

    Every unit adds a vector of norm at most Δ (:func:`lorica.common.plan.stages.unit_bound`), so
    that no honest sum over n units is longer than n·Δ and its noise, of expected norm σ·Δ·√d for d
    values. How many units a site has is its own affair: ten times what it declares are believed, a
    million where it declares nothing. One absurd sum would otherwise stay in the optimiser's second
    moments, and all later steps be nothing beside it.

    Args:
        plan: the run.
        start: the global state that the round started from.
        round: its number; of a round whose updates are sums.

    Returns:
        that norm for a number of units that a site declares; 0: nothing.
    """
    values = sum(start[name].numel() for name in returned(plan, round, start))
    noise = _NOISE * public_privacy(plan).of_round(round).noise_multiplier * math.sqrt(values)
    unit = unit_bound(plan, round) * (1 + LARGEST_ERROR[plan.wire.update] * math.sqrt(values))
    return lambda units: unit * (believed_units(units, _UNDECLARED) + noise)
