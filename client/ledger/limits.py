"""Whether the budgets allow a charge, and what is spent of them.

Formal guarantee:
    *A run's budget and a plan's* hold for the run's events composed by PLD. They follow from the
    plan and the site's public figures, so they are fixed before the run's first reply; in which
    order they are asked for, and whether all are, may depend on replies (mechanisms fixed
    beforehand compose the same when they are interleaved by whoever sees all replies: Vadhan and
    Zhang, "Concurrent Composition Theorems for Differential Privacy", 2023).

    *The lifetime's and a period's budget* hold whoever chooses runs in view of earlier replies:
    all that is charged is (budget, δ)-DP, within a period given everything before it. The first
    request of the scope, chosen before any reply of it, decides how, by all that its run will do:

    1. If that fits the privacy filter (:mod:`lorica.common.privacy.filter`) that is chosen by it,
       everything charged is held to that filter.
    2. Otherwise, if it fits by PLD, the budget is that run's alone and no other is let in.

    In case 1 one run alone is still counted by PLD, which is no more than the filter has room
    for. Where a charge does not say what its run will do as a whole, what it says it does counts
    as that; the trainer always says.

    *Not covered*: a budget that people raise in view of replies: from then on the larger one holds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from lorica.client.ledger.blocks import BlockFile
from lorica.client.ledger.charge import (
    Budgets,
    Charge,
    Period,
    Spending,
    number_out,
    period_of,
)
from lorica.client.ledger.composer import Composer
from lorica.client.ledger.history import History
from lorica.common.display.wording import epsilon_text, left_text
from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.filter import Tally, filter_for

_SLACK = 1 + 1e-9  # for rounding, relative


class OverBudgetError(LoricaError):
    """A charge that a budget does not allow (LOR-403)."""

    def __init__(
        self,
        charges: Sequence[Charge],
        budget: str,
        *,
        limit: float,
        spent: float,
        asked: float,
        begins: bool = False,
    ) -> None:
        """
        Args:
            charges: what was asked for.
            budget: which budget: "plan", "run", "lifetime" or the period's name.
            limit: that budget, ε.
            spent: what is spent of it, ε.
            asked: what it would become, ε.
            begins: whether it would become that by the whole run that begins with ``charges``.
        """
        first = charges[0]
        self._parts = (first.run, first.round, "+".join(charge.kind for charge in charges))
        self._figures = {"limit": limit, "spent": spent, "asked": asked}
        self._budget = budget
        self._whose = {
            "plan": f"run {first.run!r}, by its plan",
            "run": f"run {first.run!r}, by the site's policy",
            "lifetime": "the data set's lifetime",
        }.get(budget, f"the period {budget}")
        what = f"Run {first.run!r} as a whole" if begins else request_name(self._parts)
        super().__init__(
            Code.PRIVACY_BUDGET,
            f"{what} would bring the epsilon of {self._whose}, to "
            f"{epsilon_text(asked, 3)}; its budget is {limit:g}, of which "
            f"{epsilon_text(spent, 3)} is spent and {left_text(max(0.0, limit - spent), 3)} left. "
            "Nothing was charged.",
        )

    @property
    def forecast(self) -> str:
        """The same of a whole run that nobody has asked for yet."""
        limit, spent, asked = (self._figures[name] for name in ("limit", "spent", "asked"))
        whose = "this run, by its plan" if self._budget == "plan" else self._whose
        whose = "one run, by the site's policy" if self._budget == "run" else whose
        return (
            f"The epsilon of {whose}, would become {epsilon_text(asked, 3)}; its budget is "
            f"{limit:g}, of which {epsilon_text(spent, 3)} is spent."
        )

    @property
    def identity(self) -> tuple[str, int, str, str]:
        """Run, round, kind and budget: what tells refusals apart."""
        return (*self._parts, self._budget)

    def as_json(self) -> dict[str, Any]:
        """The refusal as the chain keeps it."""
        run, round, kind, budget = self.identity
        figures = {name: number_out(value) for name, value in self._figures.items()}
        return {"run": run, "round": round, "kind": kind, "budget": budget, **figures}


class Limits:
    """Composes what a history spent, and compares it with budgets."""

    def __init__(self, blocks: BlockFile | None, composer: Composer | None = None) -> None:
        """
        Args:
            blocks: keeps compositions across processes; None shares them within this one.
            composer: one that is there already.
        """
        self._blocks = blocks
        self._composers = {composer.delta: composer} if composer else {}

    def spending(
        self,
        history: History,
        budgets: Budgets,
        run: str,
        time: datetime,
        more: Sequence[PrivacyEvent] = (),
        whole: tuple[PrivacyEvent, ...] = (),
    ) -> Spending:
        """What is spent, with ``more`` events of ``run`` on top if given; ``whole``: all that the
        run will do, where that is known."""
        period = None
        if budgets.period is not None:
            within = (budgets.period, period_of(time, budgets.period))
            period = self._counted(history, within, budgets.period_epsilon, run, more, whole)
        composer = self._composer(history.delta)
        return Spending(
            lifetime=self._counted(history, None, budgets.lifetime, run, more, whole),
            run=composer.epsilon(history.of_run(run), budgets.run, more),
            period=period,
        )

    def check(
        self, history: History, budgets: Budgets, charges: Sequence[Charge], time: datetime
    ) -> Spending | None:
        """What will be spent with ``charges``, all of one run; None for no charges.

        Raises:
            OverBudgetError: the first budget that does not allow them, or, if they are a run's
                first, the run as a whole.
        """
        if not charges:
            return None
        run, whole = charges[0].run, charges[0].whole
        more = [event for charge in charges for event in charge.events]
        after = self.spending(history, budgets, run, time, more, whole)
        for charge in {(one.run_delta, one.run_epsilon): one for one in charges}.values():
            self._check_plan(history, charges, charge, more)
        self._hold(history, budgets, charges, time, after, begins=False)
        limits = budgets.run, budgets.lifetime, budgets.period_epsilon
        if whole and run not in history.fingerprints and min(limits) < math.inf:
            then = self.spending(history, budgets, run, time, whole, whole)
            self._hold(history, budgets, charges, time, then, begins=True)
        return after

    def _hold(
        self,
        history: History,
        budgets: Budgets,
        charges: Sequence[Charge],
        time: datetime,
        then: Spending,
        *,
        begins: bool,
    ) -> None:
        """Return if no budget is passed by what would be spent ``then``."""
        run = charges[0].run
        found: list[tuple[str, float, float]] = [("run", then.run, budgets.run)]
        if budgets.period is not None and then.period is not None:
            name = period_of(time, budgets.period)
            found.append((name, then.period, budgets.period_epsilon))
        found.append(("lifetime", then.lifetime, budgets.lifetime))
        for name, asked, limit in found:
            if asked > limit * _SLACK:
                before = self.spending(history, budgets, run, time)
                spent = {"run": before.run, "lifetime": before.lifetime}.get(name, before.period)
                assert spent is not None
                raise OverBudgetError(
                    charges, name, limit=limit, spent=spent, asked=asked, begins=begins
                )

    def _counted(
        self,
        history: History,
        within: tuple[Period, str] | None,
        budget: float,
        run: str,
        more: Sequence[PrivacyEvent],
        whole: tuple[PrivacyEvent, ...],
    ) -> float:
        """ε of a lifetime or period, with ``more`` events of ``run`` on top, as its budget counts
        it (the module's *Formal guarantee*)."""
        scope = history.scope(within)
        first = scope.whole or whole or tuple(more)
        chosen = filter_for(budget, history.delta, first)
        if scope.shared or (more and scope.first not in ("", run)):
            tally = scope.tally.plus(more)
            if chosen.epsilon(Tally().plus(first)) > budget * _SLACK:
                tally = tally.plus(first)  # it has the budget to itself
            return chosen.epsilon(tally)
        alone = history.of_run(scope.first or run) if scope.alone is None else scope.alone
        return self._composer(history.delta).epsilon(alone, budget, more)

    def close(self) -> None:
        """Close the file of composed blocks."""
        if self._blocks is not None:
            self._blocks.close()

    def _check_plan(
        self,
        history: History,
        charges: Sequence[Charge],
        charge: Charge,
        more: Sequence[PrivacyEvent],
    ) -> None:
        delta = history.delta if charge.run_delta is None else charge.run_delta
        composer = self._composer(delta)
        asked = composer.epsilon(history.of_run(charge.run), charge.run_epsilon, more)
        if asked > charge.run_epsilon * _SLACK:
            spent = composer.epsilon(history.of_run(charge.run))
            raise OverBudgetError(
                charges, "plan", limit=charge.run_epsilon, spent=spent, asked=asked
            )

    def _composer(self, delta: float) -> Composer:
        if self._blocks is None and delta not in self._composers:
            return _shared(delta)
        return self._composers.setdefault(delta, Composer(delta, self._blocks))


@functools.lru_cache(maxsize=8)
def _shared(delta: float) -> Composer:
    """One composer for all ledgers in memory: virtual sites do much the same work."""
    return Composer(delta)


def request_name(key: tuple[str, int, str]) -> str:
    """A request in words, for messages to the person at this machine."""
    run, round, kind = key
    return f"Round {round} ({kind}) of run {run!r}"
