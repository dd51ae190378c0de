"""Update-space canaries: what do the updates that leave a site tell about one unit?

Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar, "One-shot empirical privacy estimation for
federated learning" (arXiv 2302.03098), with a unit of one site in place of a client: every canary
has a gradient along a uniformly random direction w_i in d dimensions, and its score is the cosine
between w_i and the sum of all updates the site sent. For a direction that was not trained on, the
cosine is N(0, 1/d), whatever the updates are. Canaries are in the data by fair coins, so the
same scores give two answers:

*An estimate* (the paper's): included canaries' cosines are taken as Gaussian; ε is that of telling
N(mean, variance) from N(0, 1/d) at δ. It is no bound. Adversaries who know more (the noised
sums of single steps, better scores) may tell more, so it is mostly below the true ε; and its own
sampling error is given as an interval, from the mean's and the variance's intervals, which holds
if cosines are independent and Gaussian.

*A lower bound* without these assumptions: the one-run test of
:func:`~lorica.simulations.audit.evidence.bounds.one_run_rejects` on guesses from the cosines.

Both are lower than what gradient-space canaries show: Adam divides every value by its own size and
so hides part of the canary, as it would of any record.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from scipy import stats

from lorica.common.plan.stages import falling
from lorica.common.plan.tensors import Part, part_of
from lorica.simulations.audit.attacks.gradient import GUESSED, guess
from lorica.simulations.audit.evidence.bounds import gaussian_pair_epsilon, one_run_rejects
from lorica.simulations.audit.evidence.findings import Finding, Scatter, share_of_error
from lorica.simulations.audit.watched.canaries import RandomDirections, fair_coins
from lorica.simulations.audit.watched.steps import AuditedTrainer
from lorica.simulations.audit.watched.subject import Subject

RUN = "audit-update"
CANARIES = 1000
MOST_NUMBERS = 50_000_000
"""Numbers that all default canaries' directions may have together: 200 MB."""


def update_audit(
    subject: Subject, *, canaries: int | None, confidence: float, seed: int
) -> tuple[Finding, Scatter]:
    """Train the site once with canaries and ask what the updates it sends show of them.

    Args:
        subject: the site.
        canaries: m; when None 1000, or fewer where directions of the smaller clip group would
            not be nearly orthogonal or would take too much memory.
        confidence: of all bounds of the audit together.
        seed: of coins and directions.

    Raises:
        LoricaError: why the site would refuse.
    """
    begun = time.monotonic()
    sizes = subject.group_sizes
    fitting = max(2, min(CANARIES, min(sizes) // 3, MOST_NUMBERS // sum(sizes)))
    count = fitting if canaries is None else canaries
    generator = np.random.default_rng([seed, 2])
    coins = fair_coins(count, generator)
    trainer = subject.trainer(coins, lambda layout: RandomDirections(count, layout, generator))
    family = subject.family(trainer)
    subject.train(trainer, RUN)
    total = _sent(subject, trainer)
    cosines = -trainer.watch.directions.project(total) / float(total.norm())
    error = share_of_error("update-f-dp", confidence)
    centred = cosines - _middle(cosines)
    guesses = guess(centred, coins, round(GUESSED * count))
    low, estimate, high = andrew_estimate(
        cosines[coins], len(total), subject.plan.privacy.delta, 1.0 - confidence
    )
    finding = Finding(
        "update-f-dp",
        family.bound(lambda curve: one_run_rejects(guesses, curve, error)),
        1.0 - error,
        f"the site's updates leak at most as much, at any ε', as {family.steps} steps of the "
        f"Poisson-subsampled Gaussian mechanism with rate {family.sample_rate:.4g} and an ε below "
        "the bound",
        time.monotonic() - begun,
        {
            "canaries": count,
            "guesses": guesses.made,
            "correct": guesses.correct,
            "estimate": estimate,
            "estimate_interval": [low, high],
            "estimate_note": "an estimate, not a bound (Andrew et al.); its interval takes "
            "cosines as independent and Gaussian",
        },
    )
    title = "Update-space canaries: cosine with the updates sent"
    return finding, Scatter(title, cosines[coins], cosines[~coins])


def andrew_estimate(
    included: np.ndarray, dimensions: int, delta: float, error: float
) -> tuple[float, float, float]:
    """ε of telling included canaries' cosines from N(0, 1/d): lower limit, estimate, upper limit.

    The limits hold together with probability 1 - ``error`` for independent Gaussian cosines: the
    least and the largest ε over Student's interval for the mean and the chi-square one for the
    variance, each at error / 2.
    """
    count = len(included)
    mean, deviation = float(included.mean()), float(included.std(ddof=1))
    reference = 1.0 / math.sqrt(dimensions)
    reach = float(stats.t.isf(error / 4, count - 1)) * deviation / math.sqrt(count)
    squares = (count - 1) * deviation**2
    means = max(0.0, abs(mean) - reach), abs(mean) + reach
    narrow, wide = (
        math.sqrt(squares / float(stats.chi2.ppf(share, count - 1)))
        for share in (1 - error / 4, error / 4)
    )
    spreads = np.linspace(narrow, wide, 9)  # ε need not be least or largest at an end
    least, largest = (
        [gaussian_pair_epsilon(at, float(spread), reference, delta) for spread in spreads]
        for at in means
    )
    estimate = gaussian_pair_epsilon(abs(mean), deviation, reference, delta)
    return min(least), estimate, max(largest)


def _sent(subject: Subject, trainer: AuditedTrainer) -> torch.Tensor:
    """The sum of all updates sent, in units of the learning rates, as one vector (d,)."""
    training = subject.plan.training
    total = torch.zeros(())
    for round, update in enumerate(trainer.watch.updates, 1):
        factor = falling(subject.plan, round, subject.plan.training.final_rate)
        parts = []
        for name in trainer.watch.layout.names:
            head = part_of(name) is Part.HEAD
            rate = training.head_learning_rate if head else training.learning_rate
            moved = update.get(name, torch.zeros(subject.start[name].shape))  # kept at the site
            parts.append(moved.double().flatten() / (rate * factor))
        total = total + torch.cat(parts)
    return total


def _middle(scores: np.ndarray) -> float:
    """A threshold that no coin had a part in: the median, as half of the canaries are in."""
    return float(np.median(scores))
