"""Canaries in the releases of the default recipe: label sums, then gradient sums of the head.

*Design.* m canaries own one entry each of the head's weight (``Entries``), the same in all rounds.
Each is a unit of the site or not by a fair coin u_i. What it adds is replaced, before clipping, by
a matrix along its entry of ``OVERSIZE`` times the bound; clipped it is one bound long, the whole
sensitivity. So round t with noise multiplier σ_t and sample rate q_t shows along canary i's entry,
in units of the round's bound,

    o_ti = b_ti·u_i + N(0, σ_t²),    b_ti ~ Bernoulli(q_t),

which is the pair of distributions from which ε is computed: nothing is lost between the claim and
what a canary can show.

*Score.* The log-likelihood ratio of "in" against "out" over all rounds,

    Λ_i = Σ_t log(1 - q_t + q_t·exp((2·o_ti - 1) / (2s_t²))),

with s_t the noise found in the stage's releases along entries that belong to no canary. With
q = 1 it is Σ_t (2·o_ti - 1) / (2s_t²): evidence weighted by 1/σ_t², which is sufficient, and the
run is exactly one Gaussian mechanism with 1/σ² = Σ_t 1/σ_t².

*Bounds*: "release-dp", "release-f-dp" and "release-mechanism" reject the same hypotheses as their
namesakes of :mod:`~lorica.simulations.audit.attacks.gradient`, with the composition of the
stages' releases in place of equal steps
(:class:`~lorica.simulations.audit.evidence.family.Stages`). A claim is "in the claimed
proportions": H_s says that every σ_t is at least s times the claimed.

*Checks* are made stage by stage: drawing, the noise along entries of nobody, and the ledger.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lorica.common.plan.stages import Stage
from lorica.common.privacy.event import PrivacyEvent
from lorica.simulations.audit.attacks.gradient import (
    CANARIES,
    LEAST_NOISE,
    REFERENCES,
    bounds_from_scores,
    likelihood_ratios,
)
from lorica.simulations.audit.evidence.checks import check_charges, check_noise, check_sampling
from lorica.simulations.audit.evidence.family import Stages
from lorica.simulations.audit.evidence.findings import Check, Finding, Scatter
from lorica.simulations.audit.watched.canaries import Entries, fair_coins
from lorica.simulations.audit.watched.steps import most_canaries
from lorica.simulations.audit.watched.subject import Subject

RUN = "audit-release"


def release_audit(
    subject: Subject, *, canaries: int | None, confidence: float, seed: int
) -> tuple[list[Finding], list[Check], Scatter]:
    """Run the site's releases once with canaries and bound ε by what leaves it.

    Args:
        subject: the site; all stages of its plan are on frozen features
            (:attr:`Subject.in_releases`).
        canaries: m; as many as fit, up to 2250, when None.
        confidence: of all bounds of the audit together.
        seed: of coins and entries.

    Raises:
        LoricaError: LOR-103 too many canaries for the head, and why the site would refuse.
    """
    begun = time.monotonic()
    room = subject.start["head.weight"].numel()
    count = min(CANARIES, most_canaries(room)) if canaries is None else canaries
    references = max(1, min(REFERENCES, room - count))
    generator = np.random.default_rng([seed, 3])
    coins = fair_coins(count, generator)
    trainer = subject.releasing_trainer(
        coins, lambda shape: Entries(count + references, shape, generator)
    )
    claimed = subject.events(trainer)
    subject.train(trainer, RUN)
    seen, draws = np.array(trainer.watch.scores), np.array(trainer.watch.draws)
    stages, most = trainer.watch.stages, subject.records_per_unit
    scores, found, checks, happened = by_stage(claimed, stages, seen, draws, count, most)
    privacy = subject.plan.privacy
    ledger = check_charges(
        trainer.ledger.history().events(RUN),
        happened,
        delta=privacy.delta,
        seen=f"{len(seen)} releases",
        claimed=privacy.epsilon,
    )
    checks.append(dataclasses.replace(ledger, name="ledger of the releases"))
    family = Stages(tuple(claimed.values()), privacy.delta)
    seconds = time.monotonic() - begun
    findings = bounds_from_scores(
        scores, coins, family, confidence, seconds, found | {"releases": len(seen)}, kind="release"
    )
    title = "Canaries in the releases: log-likelihood ratio"
    return findings, checks, Scatter(title, scores[coins], scores[~coins])


class ByStage(NamedTuple):
    """What releases tell of the canaries and of the mechanism, stage by stage."""

    scores: np.ndarray
    """Λ of every canary over all rounds, shape (m,)."""
    facts: dict[str, float]
    """Claimed and found noise multiplier of every stage."""
    checks: list[Check]
    """Of drawing and noise."""
    happened: list[PrivacyEvent]
    """The stages' events, with the steps that were seen."""


def by_stage(
    claimed: Mapping[Stage, PrivacyEvent],
    stages: Sequence[Stage],
    seen: np.ndarray,
    draws: np.ndarray,
    count: int,
    most: int,
) -> ByStage:
    """Score canaries and check drawing and noise.

    Args:
        claimed: what each stage claims of one release.
        stages: of every round.
        seen: released values along canaries, then along entries of nobody, shape (rounds, m + r),
            in units of the round's bound.
        draws: how many records were drawn, by round.
        count: m.
        most: records of a unit at most.
    """
    scores, facts, checks, happened = np.zeros(count), {}, [], []
    for stage, event in claimed.items():
        rounds = np.array([one is stage for one in stages])
        noise = float(np.sqrt(np.mean(seen[rounds, count:] ** 2)))
        scores += _evidence(seen[rounds, :count], event, noise)
        facts[f"noise_multiplier_found_{stage.name.lower()}"] = noise
        facts[f"noise_multiplier_claimed_{stage.name.lower()}"] = event.noise_multiplier
        checks += [
            _of_stage(stage, check_sampling(draws[rounds], event.sample_rate, most=most)),
            _of_stage(stage, check_noise(seen[rounds, count:], event.noise_multiplier)),
        ]
        happened.append(dataclasses.replace(event, steps=int(rounds.sum())))
    return ByStage(scores, facts, checks, happened)


def _evidence(seen: np.ndarray, event: PrivacyEvent, noise: float) -> np.ndarray:
    """The part of Λ that one stage's releases give, shape (rounds, m) -> (m,)."""
    scale = max(noise, LEAST_NOISE * event.noise_multiplier)
    return likelihood_ratios(seen, event.sample_rate, scale)


def _of_stage(stage: Stage, check: Check) -> Check:
    """The check, named after the stage whose releases it is of."""
    return dataclasses.replace(check, name=f"{check.name}, {stage.value}")
