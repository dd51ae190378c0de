"""Whether the budgets allow a charge, and what is spent of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from lorica.client.ledger.blocks import BlockFile
from lorica.client.ledger.charge import Budgets, Charge, Spending, number_out, period_of
from lorica.client.ledger.composer import Composer
from lorica.client.ledger.history import History
from lorica.common.display.wording import epsilon_text, left_text
from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.accountant import PrivacyEvent

_SLACK = 1 + 1e-9  # for rounding, relative


class OverBudgetError(LoricaError):
    """A charge that a budget does not allow (LOR-403)."""

    def __init__(
        self, charges: Sequence[Charge], budget: str, *, limit: float, spent: float, asked: float
    ) -> None:
        """
        Args:
            charges: what was asked for.
            budget: which budget: "plan", "run", "lifetime" or the period's name.
            limit: that budget, ε.
            spent: what is spent of it, ε.
            asked: what it would become, ε.
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
        super().__init__(
            Code.PRIVACY_BUDGET,
            f"{request_name(self._parts)} would bring the epsilon of {self._whose}, to "
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

    def __init__(self, blocks: BlockFile | None) -> None:
        """``blocks``: keeps compositions across processes; None shares them within this one."""
        self._blocks = blocks
        self._composers: dict[float, Composer] = {}

    def spending(
        self,
        history: History,
        budgets: Budgets,
        run: str,
        time: datetime,
        more: Sequence[PrivacyEvent] = (),
    ) -> Spending:
        """What is spent, with ``more`` events on top if given."""
        composer = self._composer(history.delta)
        period = None
        if budgets.period is not None:
            within = (budgets.period, period_of(time, budgets.period))
            period = composer.epsilon(
                [*history.events(within=within), *more], budgets.period_epsilon
            )
        return Spending(
            lifetime=composer.epsilon([*history.events(), *more], budgets.lifetime),
            run=composer.epsilon([*history.events(run=run), *more], budgets.run),
            period=period,
        )

    def check(
        self, history: History, budgets: Budgets, charges: Sequence[Charge], time: datetime
    ) -> Spending | None:
        """What will be spent with ``charges``, all of one run; None for no charges.

        Raises:
            OverBudgetError: the first budget that does not allow them.
        """
        if not charges:
            return None
        run = charges[0].run
        more = [event for charge in charges for event in charge.events]
        after = self.spending(history, budgets, run, time, more)
        for charge in charges:
            self._check_plan(history, charges, charge, more)
        found: list[tuple[str, float, float]] = [("run", after.run, budgets.run)]
        if budgets.period is not None and after.period is not None:
            name = period_of(time, budgets.period)
            found.append((name, after.period, budgets.period_epsilon))
        found.append(("lifetime", after.lifetime, budgets.lifetime))
        for name, asked, limit in found:
            if asked > limit * _SLACK:
                before = self.spending(history, budgets, run, time)
                spent = {"run": before.run, "lifetime": before.lifetime}.get(name, before.period)
                assert spent is not None
                raise OverBudgetError(charges, name, limit=limit, spent=spent, asked=asked)
        return after

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
        composer, past = self._composer(delta), history.events(run=charge.run)
        asked = composer.epsilon([*past, *more], charge.run_epsilon)
        if asked > charge.run_epsilon * _SLACK:
            spent = composer.epsilon(past)
            raise OverBudgetError(
                charges, "plan", limit=charge.run_epsilon, spent=spent, asked=asked
            )

    def _composer(self, delta: float) -> Composer:
        if self._blocks is None:
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
