"""What a ledger says, in figures: in all, by run, by month, over time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

from lorica.client.ledger.charge import Budgets, period_of
from lorica.client.ledger.composer import Composer
from lorica.client.ledger.history import History, Refused
from lorica.client.ledger.limits import Limits
from lorica.common.privacy.renyi import renyi_epsilon
from lorica.common.privacy.shared_noise import OBSERVERS, Figures

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
    """Of everything charged, by PLD: what was released, had all runs been fixed beforehand."""
    counted: float
    """Of the lifetime's budget, as :mod:`lorica.client.ledger.limits` counts."""
    rdp: float | None
    """By Rényi accounting; None when it was left out."""
    observers: Figures | None
    """``epsilon`` for each observer of sealed sums; None where there were none."""
    period: str | None
    """The current period's name, when a budget holds for one."""
    period_epsilon: float | None
    """Of the period's budget, counted as the lifetime's."""
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
    moment = now or datetime.now(UTC)
    period = None if budgets.period is None else period_of(moment, budgets.period)
    spent = Limits(None, composer).spending(history, budgets, "", moment)
    return Summary(
        data_set=history.data_set,
        unit=history.unit,
        delta=history.delta,
        opened=history.opened,
        changed=history.changed,
        budgets=list(history.budgets),
        epsilon=composer.record(events),
        counted=spent.lifetime,
        rdp=renyi_epsilon(events, history.delta) if with_rdp else None,
        observers=_observers(history, composer),
        period=period,
        period_epsilon=spent.period,
        runs=[_run_row(history, composer, run, with_rdp) for run in history.runs()],
        months=_months(history, composer),
        points=[Point(c.time, c.charge.run, c.spent.lifetime) for c in history.charges],
        refused=list(history.refused),
        count=history.count,
        head=history.head,
    )


def _observers(history: History, composer: Composer) -> Figures | None:
    if all(charged.charge.shared.threshold == 1 for charged in history.charges):
        return None
    return Figures(*(composer.record(history.observed(observer)) for observer in OBSERVERS))


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
        rdp=renyi_epsilon(events, history.delta) if with_rdp else None,
        refused=sum(refused.run == run for refused in history.refused),
    )


def _months(history: History, composer: Composer) -> list[MonthRow]:
    counts = Counter(period_of(charged.time, "month") for charged in history.charges)
    return [
        MonthRow(month, count, composer.record(history.events(within=("month", month))))
        for month, count in sorted(counts.items())
    ]
