"""Canaries in sealed sums, as the coordinator and colluding sites see them.

*Design.* The canaries of :mod:`~lorica.simulations.audit.attacks.release` are units of one honest
site. n sites are asked: h honest ones, of which each adds N_Z(0, v) to its integers, and c = n - h
that collude with the coordinator and add none. Everything between a record and an opened sum is
real: sites' draws, clipping, grid and discrete noise, masks, shares, signatures and the round loop.
So round t shows along canary i's entry, in units of the round's bound,

    o_ti = b_ti·u_i + (h draws of N_Z(0, v))·γ/Δ,    b_ti ~ Bernoulli(q_t),

with v = ⌈σ_t²S²/h⌉, so that the noise has std σ_t or a per mille more (S exceeds Δ/γ by so much:
:mod:`lorica.common.secure_sum.grid`). That is the pair of distributions from which ε against the
coordinator with n - h colluders is computed, which is the ε that the plan claims; it is as good as
Gaussian (:mod:`lorica.common.privacy.shared_noise` bounds how good, and the plan keeps back for
it more than that).

*Score, bounds and checks* are those of :mod:`~lorica.simulations.audit.attacks.release`.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from lorica.common.privacy.sealed import shared_noise, sum_terms
from lorica.common.privacy.shared_noise import OBSERVERS, figures
from lorica.simulations.audit.attacks.gradient import CANARIES, REFERENCES, bounds_from_scores
from lorica.simulations.audit.attacks.release import by_stage
from lorica.simulations.audit.evidence.checks import check_charges
from lorica.simulations.audit.evidence.family import Stages
from lorica.simulations.audit.evidence.findings import Check, Finding, Scatter
from lorica.simulations.audit.watched.canaries import Entries, fair_coins
from lorica.simulations.audit.watched.steps import most_canaries
from lorica.simulations.audit.watched.subject import Subject
from lorica.simulations.audit.watched.sums import SummedFederation

RUN = "audit-sum"


def sum_audit(
    subject: Subject, *, canaries: int | None, confidence: float, seed: int
) -> tuple[list[Finding], list[Check], Scatter]:
    """Run a federation of sealed sums with canaries at one site and bound ε by what opens.

    Args:
        subject: the site in sealed sums (:attr:`Subject.in_sums`).
        canaries: m; as many as fit, up to 2250, when None.
        confidence: of all bounds of the audit together.
        seed: of coins and entries.

    Raises:
        LoricaError: LOR-103 too many canaries for the head, and why a site would refuse.
    """
    begun = time.monotonic()
    room = subject.start["head.weight"].numel()
    count = min(CANARIES, most_canaries(room)) if canaries is None else canaries
    references = max(1, min(REFERENCES, room - count))
    generator = np.random.default_rng([seed, 4])
    coins = fair_coins(count, generator)
    federation = SummedFederation(
        subject, coins, lambda shape: Entries(count + references, shape, generator)
    )
    site, watch = federation.audited, federation.audited.watch
    claimed = subject.events(site)
    federation.train(RUN)
    seen, draws = federation.seen, np.array(watch.draws)
    most = subject.records_per_unit
    scores, facts, checks, happened = by_stage(claimed, watch.stages, seen, draws, count, most)
    plan, seats = subject.plan, subject.seats
    shared = shared_noise(plan, sum_terms(plan, seats.sites))
    history = site.ledger.history()
    told = figures(happened, plan.privacy.delta, shared)
    for observer in OBSERVERS:  # each is charged the noise that is left for it
        ledger = check_charges(
            history.observed(observer),
            [shared.seen_by(observer, event) for event in happened],
            delta=plan.privacy.delta,
            seen=f"{len(seen)} sums",
            claimed=plan.privacy.epsilon if observer == "colluding" else getattr(told, observer),
        )
        checks.append(dataclasses.replace(ledger, name=f"ledger of the sums, {observer}"))
    facts |= {"sums": len(seen), "sites": seats.sites, "honest_sites": seats.honest}
    checks = [dataclasses.replace(check, name=f"sealed: {check.name}") for check in checks]
    family = Stages(tuple(claimed.values()), plan.privacy.delta)
    seconds = time.monotonic() - begun
    findings = bounds_from_scores(scores, coins, family, confidence, seconds, facts, kind="sum")
    title = "Canaries in sealed sums: log-likelihood ratio"
    return findings, checks, Scatter(title, scores[coins], scores[~coins])
