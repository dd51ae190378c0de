"""The ledger's vocabulary: a charge, the budgets it must keep, what is spent, a calendar period."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.shared_noise import OWN_NOISE, SharedNoise

Period = Literal["month", "quarter", "year"]
"""Calendar periods, in UTC."""

MECHANISM, BIT = "Poisson-subsampled Gaussian", "randomised response"
"""The mechanisms that Lorica runs; written into every charge."""

MAX_NAME = 200
"""Longest run id or kind, characters: they come from a coordinator and are kept for ever."""


@dataclass(frozen=True)
class Charge:
    """What one answer of a site is about to cost.

    Raises:
        LoricaError: LOR-501 when run or kind are empty or longer than :data:`MAX_NAME`.
        ValueError: an event out of range; a defect of the caller.
    """

    run: str
    """Lorica's run id."""
    round: int
    """Round, from 0."""
    kind: str
    """What is asked: "train", "evaluate", "benefit"; each kind of a round is answered once."""
    events: tuple[PrivacyEvent, ...]
    """Every mechanism that the answer runs on private data."""
    unit: str
    """Unit of privacy that the events are stated for."""
    fingerprint: str
    """The plan's fingerprint; fixed for a run by its first charge."""
    run_epsilon: float = math.inf
    """ε that the plan allows the whole run, in nats."""
    run_delta: float | None = None
    """δ of ``run_epsilon``; the ledger's when None."""
    whole: tuple[PrivacyEvent, ...] = ()
    """All that the run will do, as its plan fixes it, ``events`` included; empty when that is not
    known. A run that does not fit the budgets as a whole is not begun."""

    shared: SharedNoise = OWN_NOISE
    """Among how many sites the events' noise is shared: they are stated for ``honest`` sites'. 1 of
    1: it is all this site's own."""

    def __post_init__(self) -> None:
        for name in (self.run, self.kind):
            if not 0 < len(name) <= MAX_NAME:
                raise LoricaError(
                    Code.MESSAGE_MALFORMED, f"A run id or kind has {len(name)} characters."
                )
        if self.round < 0 or not 0 < (self.run_delta or 0.5) < 1 or math.isnan(self.run_epsilon):
            raise ValueError(f"{self} is out of range")
        for event in (*self.events, *self.whole):
            sigma, rate = event.noise_multiplier, event.sample_rate
            if not (math.isfinite(sigma) and sigma >= 0 and 0 < rate <= 1 and event.steps >= 1):
                raise ValueError(f"{event} is out of range")

    @property
    def key(self) -> tuple[str, int, str]:
        """(run, round, kind): what is answered at most once."""
        return (self.run, self.round, self.kind)

    def same_work(self, other: Charge) -> bool:
        """Whether both run the very same mechanisms under the same plan."""
        mine, others = (self.events, self.shared), (other.events, other.shared)
        return (mine, self.fingerprint) == (others, other.fingerprint)

    def as_json(self) -> dict[str, Any]:
        """The charge as the chain keeps it."""
        honest, threshold = self.shared.honest, self.shared.threshold
        shared = {"honest": honest, "threshold": threshold} if threshold > 1 else {}
        return {
            **shared,
            "run": self.run,
            "round": self.round,
            "kind": self.kind,
            "mechanism": BIT if any(event.response for event in self.events) else MECHANISM,
            "events": _events_out(self.events),
            "unit": self.unit,
            "fingerprint": self.fingerprint,
            "run_epsilon": number_out(self.run_epsilon),
            "run_delta": self.run_delta,
            "whole": _events_out(self.whole),
        }

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Charge:
        """The inverse of :meth:`as_json`."""
        return Charge(
            run=body["run"],
            round=int(body["round"]),
            kind=body["kind"],
            events=_events_in(body["events"]),
            unit=body["unit"],
            fingerprint=body["fingerprint"],
            run_epsilon=number_in(body["run_epsilon"]),
            run_delta=body["run_delta"],
            whole=_events_in(body.get("whole", ())),  # ledgers of before have none
            shared=SharedNoise(int(body.get("honest", 1)), int(body.get("threshold", 1))),
        )


def _events_out(events: tuple[PrivacyEvent, ...]) -> list[dict[str, float]]:
    return [
        {"sigma": float(e.noise_multiplier), "q": float(e.sample_rate), "steps": e.steps}
        | ({"response": float(e.response)} if e.response else {})
        for e in events
    ]


def _events_in(events: Iterable[Mapping[str, Any]]) -> tuple[PrivacyEvent, ...]:
    return tuple(
        PrivacyEvent(
            float(e["sigma"]), float(e["q"]), int(e["steps"]), float(e.get("response", 0.0))
        )
        for e in events
    )


@dataclass(frozen=True)
class Budgets:
    """The most ε that a site's policy lets its data spend, all at the ledger's δ.

    The defaults refuse a run without privacy, whose ε is infinite; only budgets of inf let one
    through, and a ledger that has one can never be held to a finite lifetime budget again.
    """

    lifetime: float = 8.0
    """ε of everything ever charged to the data set, in nats."""
    run: float = 8.0
    """ε of any one run; the plan's own budget holds beside it."""
    period: Period | None = None
    """Calendar period that ``period_epsilon`` holds for, in UTC; None for none."""
    period_epsilon: float = math.inf
    """ε of everything charged within one period."""

    def __post_init__(self) -> None:
        for value in (self.lifetime, self.run, self.period_epsilon):
            if math.isnan(value) or value <= 0:
                raise LoricaError(
                    Code.PRIVACY_EPSILON, f"A site's budget must be above 0 (or inf), got {value}."
                )
        if self.period not in (None, "month", "quarter", "year"):
            raise ValueError(f"{self.period!r} is no period")

    @staticmethod
    def unlimited() -> Budgets:
        """No limit of the site's own: for simulations, where the plan's budget is the only one."""
        return Budgets(math.inf, math.inf)

    def as_json(self) -> dict[str, Any]:
        """The budgets as the chain keeps them."""
        return {
            "lifetime": number_out(self.lifetime),
            "run": number_out(self.run),
            "period": self.period,
            "period_epsilon": number_out(self.period_epsilon),
        }

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Budgets:
        """The inverse of :meth:`as_json`."""
        return Budgets(
            number_in(body["lifetime"]),
            number_in(body["run"]),
            body["period"],
            number_in(body["period_epsilon"]),
        )


@dataclass(frozen=True)
class Spending:
    """ε spent at the ledger's δ, in nats, as the budgets count it
    (:mod:`lorica.client.ledger.limits`)."""

    lifetime: float
    """By everything ever charged: by PLD while that is one run, then by a privacy filter."""
    run: float
    """By the run in question, by PLD."""
    period: float | None = None
    """By the current period, as for the lifetime; None when no budget holds for one."""

    def as_json(self) -> dict[str, Any]:
        """The figures as the chain keeps them."""
        return {
            "lifetime": number_out(self.lifetime),
            "run": number_out(self.run),
            "period": None if self.period is None else number_out(self.period),
        }

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Spending:
        """The inverse of :meth:`as_json`."""
        period = body["period"]
        return Spending(
            number_in(body["lifetime"]),
            number_in(body["run"]),
            None if period is None else number_in(period),
        )


def period_of(time: datetime, period: Period) -> str:
    """Name of the calendar period that ``time`` falls in, in UTC: 2026-07, 2026-Q3 or 2026."""
    moment = time.astimezone(UTC)
    if period == "year":
        return f"{moment.year}"
    if period == "quarter":
        return f"{moment.year}-Q{(moment.month + 2) // 3}"
    return f"{moment.year}-{moment.month:02d}"


def number_out(value: float) -> float | str:
    """A number for JSON, which knows no infinity."""
    return "inf" if math.isinf(value) else float(value)


def number_in(value: float | str) -> float:
    """The inverse of :func:`number_out`."""
    return float(value)
