"""Gradient-space canaries: one training run, one coin per canary, a guess from what was released.

*Design.* m canaries own coordinates of the trained values (``Coordinates``). Each is a unit of the
site or not by a fair coin. In step t the auditor sees o_ti = b_ti·u_i + N(0, σ²) along canary i's
direction, in units of C, where u_i is the coin and b_ti whether Poisson sampling drew it: exactly
the pair of distributions, with the unit and without it, from which ε is computed. So nothing is
lost between the claim and what a canary can show, and one site's real training is audited as
it runs, with hundreds of real records beside the canaries.

*Score.* The log-likelihood ratio of "in" against "out",

    Λ_i = Σ_t log(1 - q + q·exp((2·o_ti - 1) / (2s²))),

the best test there is (Neyman and Pearson), with s the noise found along reference directions
that belong to no canary. Guesses that differ from this are only weaker, never wrong.

*Bounds*, each from a null hypothesis that it rejects:

"gradient-dp" — H: training is (ε, δ)-DP, whatever else. Guesses for the 30 % of canaries
with the largest abs(Λ). Proves: no (ε, δ)-DP mechanism at the given δ does this (Steinke et al.).

"gradient-f-dp" — H_σ: the whole privacy curve δ(·) of training is at most that of T steps of the
Poisson-subsampled Gaussian with rate q and noise σ. The same guesses. Nothing is assumed about
dependence between canaries. Proves: training does not have the curve of any σ' >= σ (Mahloujifar
et al.); ε is what the accountant states for the least σ rejected, so the bound on ε holds for
mechanisms of the family, and for every mechanism the family's curve is refuted.

"gradient-mechanism" — H_σ: training *is* that mechanism with noise σ or more, with independent
noise in every coordinate. Then o_ti of different canaries are independent (the real
records' contribution is known to the auditor and subtracted), and guesses for all m are right
independently with probability (1 + TV_σ) / 2 at most. Proves: no such mechanism is at work. This
is the sharpest, within some tenths of the true ε.
"""

from __future__ import annotations

import time

import numpy as np

from lorica.simulations.audit.evidence.bounds import (
    Guesses,
    independent_rejects,
    one_run_bound,
    one_run_rejects,
)
from lorica.simulations.audit.evidence.checks import check_ledger, check_noise, check_sampling
from lorica.simulations.audit.evidence.family import Family, Kin
from lorica.simulations.audit.evidence.findings import Check, Finding, Scatter, share_of_error
from lorica.simulations.audit.watched.canaries import Coordinates, fair_coins
from lorica.simulations.audit.watched.steps import most_canaries
from lorica.simulations.audit.watched.subject import Subject

RUN = "audit-gradient"
CANARIES = 2250
REFERENCES = 500
"""Directions of nobody, to measure the noise."""
GUESSED = 0.3
"""Share of canaries that the one-run bounds guess; fixed, as they ask for."""
LEAST_NOISE = 0.05
"""The noise found is taken for at least this share of the claimed (which may be absent)."""


def gradient_audit(
    subject: Subject, *, canaries: int | None, confidence: float, seed: int
) -> tuple[list[Finding], list[Check], Scatter]:
    """Train the site once with canaries and bound ε by what the noised sums show.

    Args:
        subject: the site.
        canaries: m; as many as fit, up to 2250, when None.
        confidence: of all bounds of the audit together.
        seed: of coins and directions.

    Raises:
        LoricaError: LOR-103 too many canaries for the adapter, and why the site would refuse.
    """
    begun = time.monotonic()
    room = min(subject.group_sizes)
    count = min(CANARIES, most_canaries(room)) if canaries is None else canaries
    references = max(1, min(REFERENCES, room - count))
    generator = np.random.default_rng([seed, 1])
    coins = fair_coins(count, generator)
    trainer = subject.trainer(
        coins, lambda layout: Coordinates(count + references, layout, generator)
    )
    family = subject.family(trainer)
    subject.train(trainer, RUN)
    seen = np.array(trainer.watch.scores)
    noise_found = float(np.sqrt(np.mean(seen[:, count:] ** 2)))
    scores = log_likelihood_ratio(seen[:, :count], family, noise_found)
    checks = [
        check_sampling(
            np.array(trainer.watch.draws), family.sample_rate, most=subject.records_per_unit
        ),
        check_noise(seen[:, count:], family.claimed_noise),
        check_ledger(
            trainer.ledger.history().events(RUN),
            family,
            steps=len(seen),
            claimed=subject.plan.privacy.epsilon,
        ),
    ]
    seconds = time.monotonic() - begun
    findings = bounds_from_scores(
        scores,
        coins,
        family,
        confidence,
        seconds,
        {
            "noise_multiplier_claimed": family.claimed_noise,
            "sample_rate": family.sample_rate,
            "noise_multiplier_found": noise_found,
            "steps": len(seen),
        },
    )
    scatter = Scatter(
        "Gradient-space canaries: log-likelihood ratio", scores[coins], scores[~coins]
    )
    return findings, checks, scatter


def log_likelihood_ratio(seen: np.ndarray, family: Family, noise: float) -> np.ndarray:
    """Λ of every canary from what was seen along its direction, shape (steps, m) -> (m,)."""
    scale = max(noise, LEAST_NOISE * family.claimed_noise)
    return likelihood_ratios(seen, family.sample_rate, scale)


def likelihood_ratios(seen: np.ndarray, rate: float, scale: float) -> np.ndarray:
    """Σ_t log(1 - q + q·exp((2·o_ti - 1) / (2s²))), shape (steps, m) -> (m,)."""
    with np.errstate(divide="ignore"):
        absent, present = np.log1p(-rate), np.log(rate)
    return np.logaddexp(absent, present + (2 * seen - 1) / (2 * scale**2)).sum(axis=0)


def bounds_from_scores(
    scores: np.ndarray,
    coins: np.ndarray,
    family: Kin,
    confidence: float,
    seconds: float,
    facts: dict[str, float],
    kind: str = "gradient",
) -> list[Finding]:
    """The three bounds; scores are positive for "in", larger in size when surer; shape (m,)."""
    begun = time.monotonic() - seconds
    names = [f"{kind}-{bound}" for bound in ("dp", "f-dp", "mechanism")]
    dp, f_dp, mechanism = names
    error = {name: share_of_error(name, confidence) for name in names}
    surest = guess(scores, coins, round(GUESSED * len(coins)))
    everyone = guess(scores, coins, len(coins))
    shape = family.described
    found = {
        dp: (
            one_run_bound(surest, family.delta, error[dp]),
            surest,
            "training is (ε, δ)-DP for an ε below the bound",
        ),
        f_dp: (
            family.bound(lambda curve: one_run_rejects(surest, curve, error[f_dp])),
            surest,
            f"training leaks at most as much, at any ε', as {shape} and an ε below the bound",
        ),
        mechanism: (
            family.bound(lambda curve: independent_rejects(everyone, curve, error[mechanism])),
            everyone,
            f"training is {shape}, noise independent over coordinates, and an ε below the bound",
        ),
    }
    return [
        Finding(
            name,
            bound,
            1.0 - error[name],
            hypothesis,
            time.monotonic() - begun,
            {
                "canaries": guesses.canaries,
                "guesses": guesses.made,
                "correct": guesses.correct,
                **facts,
            },
        )
        for name, (bound, guesses, hypothesis) in found.items()
    ]


def guess(scores: np.ndarray, coins: np.ndarray, made: int) -> Guesses:
    """Guess "in" or "out" by the sign of the ``made`` scores of largest size."""
    surest = np.argsort(-np.abs(scores), kind="stable")[:made]
    correct = int(((scores[surest] > 0) == coins[surest]).sum())
    return Guesses(len(coins), made, correct)
