"""What decides about a budget: PLD for one run, a privacy filter from the second on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lorica.client.ledger import Budgets, MemoryLedger
from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.accountant import calibrate_noise, epsilon
from lorica.common.privacy.event import PrivacyEvent
from tests.client.ledger.helpers import PLAN, charge, open_ledger

DELTA = 1e-5


def ledger(lifetime: float) -> MemoryLedger:
    return MemoryLedger(DELTA, budgets=Budgets(lifetime=lifetime, run=math.inf))


def refused(one: MemoryLedger, *charges: object) -> str:
    with pytest.raises(LoricaError) as caught:
        one.charge(*charges)  # type: ignore[arg-type]
    assert caught.value.code is Code.PRIVACY_BUDGET
    return caught.value.detail


def test_two_runs_are_not_composed_as_if_the_second_had_been_fixed_beforehand() -> None:
    """By PLD both fit; whoever chose the second in view of the first is not bounded by that."""
    event = PrivacyEvent(0.94, 0.1, 100)
    both = epsilon([event] * 2, DELTA)
    one = ledger(1.02 * both)
    one.charge(charge(1, run="first", sigma=0.94, rate=0.1, steps=100, whole=(event,)))
    assert "lifetime" in refused(
        one, charge(1, run="second", sigma=0.94, rate=0.1, steps=100, whole=(event,))
    )


def test_one_run_alone_may_spend_the_whole_budget_and_then_has_it_to_itself() -> None:
    sigma = calibrate_noise(8.0, DELTA, 0.1, 100)
    whole = (PrivacyEvent(sigma, 0.1, 100),)
    one = ledger(8.0)
    for number in range(1, 26):
        one.charge(charge(number, run="only", sigma=sigma, steps=4, whole=whole))
    assert 7.9 <= one.spending("only").lifetime <= 8.0

    other = ledger(8.0)  # however little of it has run: who is let in is decided at its beginning
    other.charge(charge(1, run="first", sigma=sigma, steps=4, whole=whole))
    refused(other, charge(1, run="second", sigma=50.0, rate=0.01, steps=1))
    other.charge(charge(2, run="first", sigma=sigma, steps=4, whole=whole))


def test_a_run_that_does_not_fit_as_a_whole_is_not_begun() -> None:
    whole = (PrivacyEvent(1.0, 0.1, 400),)
    said = refused(ledger(4.0), charge(1, sigma=1.0, rate=0.1, steps=4, whole=whole))
    assert "as a whole" in said and "Nothing was charged" in said


def test_a_charge_after_many_reads_as_little_as_after_few(tmp_path: Path) -> None:
    """A count, not a time: events that a charge looks at."""
    one = open_ledger(tmp_path / "l")
    for number in range(60):
        one.charge(charge(1, run=f"run {number}"))
    history = one.history()
    assert history.scope().seen == 60
    scope = history.scope()
    before = scope.tally.precision
    one.charge(charge(1, run="next"))
    assert one.history().scope() is scope  # carried on, not built anew
    assert scope.tally.precision == pytest.approx(before * 61 / 60)
    assert len(one.history().events(run="next")) == 1
    one.close()


def test_what_is_counted_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "l"
    whole = (PrivacyEvent(20.0, 0.1, 12),)
    one = open_ledger(path)
    one.charge(charge(1, run="a", whole=whole))
    before = one.charge(charge(1, run="b", whole=whole))
    one.close()
    again = open_ledger(path)
    assert again.spending("b") == before
    assert again.history().charges[0].charge.whole == whole
    assert again.history().charges[0].charge.fingerprint == PLAN
    again.close()
