"""What a ledger says, in figures: in all, by run, by month, over time."""

from __future__ import annotations

import functools
import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from lorica.client.ledger.charge import Budgets, period_of
from lorica.client.ledger.composer import Composer
from lorica.client.ledger.history import History, Refused
from lorica.common.privacy.accountant import PrivacyEvent

MOST_RDP = 200
"""Distinct (σ, q) beyond which Rényi accounting is left out of quick views: 30 ms each."""


@dataclass(frozen=True)
class RunRow:
    """One run's part."""

    run: str
    first: datetime
    last: datetime
    rounds: int
    """Distinct rounds charged."""
    answered: int
    unanswered: int
    """Charges that no answer followed: work lost to a crash, paid for all the same."""
    steps: int
    epsilon: float
    rdp: float | None
    refused: int


@dataclass(frozen=True)
class MonthRow:
    """One calendar month's part (UTC)."""

    month: str
    charges: int
    epsilon: float


@dataclass(frozen=True)
class Point:
    """Total ε once a charge was written."""

    time: datetime
    run: str
    epsilon: float


@dataclass(frozen=True)
class Summary:
    """A ledger in figures; every ε at the ledger's δ, in nats."""

    data_set: str
    unit: str
    delta: float
    opened: datetime | None
    changed: datetime | None
    budgets: list[tuple[datetime, Budgets]]
    epsilon: float
    rdp: float | None
    """By Rényi accounting; None when it was left out."""
    period: str | None
    """The current period's name, when a budget holds for one."""
    period_epsilon: float | None
    runs: list[RunRow]
    months: list[MonthRow]
    points: list[Point]
    refused: list[Refused]
    count: int
    head: str


def summarise(
    history: History, composer: Composer, *, now: datetime | None = None, most_rdp: int = MOST_RDP
) -> Summary:
    """The figures of a history.

    Args:
        history: of a ledger, or of the sound part of one.
        composer: composes at the history's δ.
        now: the time that "current period" refers to; the present when omitted.
        most_rdp: distinct (σ, q) up to which Rényi accounting is done as well.
    """
    events = history.events()
    with_rdp = len({(e.noise_multiplier, e.sample_rate) for e in events}) <= most_rdp
    budgets = history.budgets[-1][1] if history.budgets else Budgets.unlimited()
    period, spent = None, None
    if budgets.period is not None:
        period = period_of(now or datetime.now(UTC), budgets.period)
        spent = composer.record(history.events(within=(budgets.period, period)))
    return Summary(
        data_set=history.data_set,
        unit=history.unit,
        delta=history.delta,
        opened=history.opened,
        changed=history.changed,
        budgets=list(history.budgets),
        epsilon=composer.record(events),
        rdp=rdp_epsilon(events, history.delta) if with_rdp else None,
        period=period,
        period_epsilon=spent,
        runs=[_run_row(history, composer, run, with_rdp) for run in history.runs()],
        months=_months(history, composer),
        points=[Point(c.time, c.charge.run, c.spent.lifetime) for c in history.charges],
        refused=list(history.refused),
        count=history.count,
        head=history.head,
    )


def rdp_epsilon(events: Iterable[PrivacyEvent], delta: float) -> float:
    """As :func:`~lorica.common.privacy.accountant.epsilon_rdp`, each (σ, q) worked out once."""
    from dp_accounting.rdp import rdp_privacy_accountant as rdp

    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        steps[event.noise_multiplier, event.sample_rate] += event.steps
    if not steps:
        return 0.0
    if any(sigma == 0 for sigma, _ in steps):
        return math.inf
    total = sum(count * _rdp_of_step(*key)[1] for key, count in steps.items())
    orders = _rdp_of_step(*next(iter(steps)))[0]
    return float(rdp.compute_epsilon(orders, total, delta)[0])


@functools.lru_cache(maxsize=4096)
def _rdp_of_step(sigma: float, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Orders, and the Rényi divergence of one step at each."""
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)  # it warns of each order it leaves out, which costs nothing
    try:
        accountant = RdpAccountant()
        accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma)))
    finally:
        logger.setLevel(before)
    return np.asarray(accountant.orders), accountant.rdp


def _run_row(history: History, composer: Composer, run: str, with_rdp: bool) -> RunRow:
    charges = [charged for charged in history.charges if charged.charge.run == run]
    paid = {done.charge for done in history.done.values()}
    events = history.events(run=run)
    answered = sum(charged.number in paid for charged in charges)
    return RunRow(
        run=run,
        first=charges[0].time,
        last=charges[-1].time,
        rounds=len({charged.charge.round for charged in charges}),
        answered=answered,
        unanswered=len(charges) - answered,
        steps=sum(event.steps for event in events),
        epsilon=composer.record(events),
        rdp=rdp_epsilon(events, history.delta) if with_rdp else None,
        refused=sum(refused.run == run for refused in history.refused),
    )


def _months(history: History, composer: Composer) -> list[MonthRow]:
    counts = Counter(period_of(charged.time, "month") for charged in history.charges)
    return [
        MonthRow(month, count, composer.record(history.events(within=("month", month))))
        for month, count in sorted(counts.items())
    ]
