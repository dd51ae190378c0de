"""The one bit that a site may tell of its comparison: whether its guard keeps a model of its own.

Asked for after the last round by a plan that says so (``privacy.benefit_epsilon``), of a site whose
policy allows it (``policy.benefit_epsilon``); off in both by default.

Formal guarantee:
    *What is told* is one of two answers, by randomised response on the guard's decision
    (:mod:`lorica.common.privacy.response`): ε-DP, δ = 0. The decision is a function of all of the
    site's records, and the bound holds for any change of them, so for one record, for a unit with
    all its records, and for all of the site. Whatever the coordinator sends as the federation's
    model, made to be judged badly or not, only decides which bit it is.

    *Mechanism*: s = ±1/2 for the decision, plus the site's noise N(0, σ²) with σ of ε, on a grid of
    step g; told is whether s + g/2 came to lie above 0. What is rounded to 0 or below lies below
    g/2, so that is whether s + N(0, σ²) > 0: the grid costs nothing. Noise that is derived
    from a secret and the request follows from s, too
    (:class:`~lorica.client.mechanism.noise.DerivedNoise`): other records under the same request
    have noise of their own.

    *Once*: the ledger is charged ε before the decision is made, as part of the plan's, and keeps
    the answer, which is what the run gets when it asks again, with whatever model.

    *A comparison that fails*, because too few records are set aside or for any other reason, is
    answered as one that keeps the federation's model: that it failed may depend on the records.

    *Time*: both of the site's models go through all their epochs, whichever of them count. Not
    covered: how long an answer takes grows with the number and length of records, as training's
    does, and a comparison that fails is quicker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from lorica.client.benefit.aside import OwnRecords
from lorica.client.benefit.compared import compare_models
from lorica.client.mechanism.noise import NoiseSource, grid_spacing
from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone
from lorica.common.errors import is_failure
from lorica.common.plan import RunPlan
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.tasks import task_of

_log = logging.getLogger("lorica.site")


def keeps_own(
    plan: RunPlan, backbone: Backbone, own: Callable[[], OwnRecords], received: State
) -> bool:
    """Whether the site's guard keeps a model without the others' records: private.

    Args:
        plan: the run's.
        backbone: its backbone.
        own: divides the site's records, which the plan's task has checked; it may fail, too.
        received: what the federation ended with, checked; what is not in it is as it began.
    """
    try:
        federated = task_of(plan).start(backbone) | received
        return compare_models(plan, backbone, own(), federated, steady=True).decision.harmed
    except BaseException as error:  # whatever it is, it may depend on the records
        if not is_failure(error):
            raise
        _log.warning("the site's models could not be compared", exc_info=error)
        return False


def told(bit: bool, event: PrivacyEvent, noise: NoiseSource) -> bool:
    """The bit by randomised response.

    Args:
        bit: the truth.
        event: what was charged, one bit by randomised response.
        noise: of the answer.

    Raises:
        ValueError: another event.
    """
    if not event.response or event.steps != 1:
        raise ValueError(f"{event} is not one bit by randomised response")
    sigma = event.noise_multiplier
    side = (0.5 if bit else -0.5) + grid_spacing(sigma) / 2
    return bool(noise.add_noise(torch.tensor([side], dtype=torch.float64), sigma) > 0)
