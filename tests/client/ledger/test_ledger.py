"""The ledger's rules: budgets, repeated requests, unanswered charges, periods."""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from lorica.client.ledger import FREE_RETRIES, Budgets, Charge, FileLedger, MemoryLedger
from lorica.client.ledger.charge import period_of
from lorica.client.ledger.ledger import KEPT_REPLIES, REFUSALS_PER_DAY
from lorica.common.display.wording import epsilon_text
from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.accountant import calibrate_noise, epsilon
from lorica.common.privacy.event import PrivacyEvent
from tests.client.ledger.helpers import OPEN, PLAN, answer, charge, open_ledger


@pytest.fixture
def ledger(tmp_path: Path) -> FileLedger:
    return open_ledger(tmp_path / "ledger.sqlite")


def refusal(call, *arguments, **keywords) -> LoricaError:
    with pytest.raises(LoricaError) as caught:
        call(*arguments, **keywords)
    return caught.value


class TestRepeatedRequests:
    def test_a_repeated_request_returns_the_stored_reply_and_costs_nothing(self, ledger):
        reply = answer(ledger, 1)
        before = ledger.spending("run")
        assert ledger.stored("run", 1, fingerprint=PLAN) == reply
        assert ledger.spending("run") == before

    def test_a_reply_outlives_its_process(self, tmp_path):
        path = tmp_path / "ledger.sqlite"
        first = open_ledger(path)
        reply = answer(first, 1)
        first.close()
        assert open_ledger(path).stored("run", 1, fingerprint=PLAN) == reply

    def test_an_unanswered_request_has_no_stored_reply(self, ledger):
        ledger.charge(charge(1))
        assert ledger.stored("run", 1, fingerprint=PLAN) is None

    def test_kinds_of_one_round_are_answered_apart(self, ledger):
        answer(ledger, 1)
        assert ledger.stored("run", 1, "evaluate", fingerprint=PLAN) is None
        reply = answer(ledger, 1, kind="evaluate")
        assert ledger.stored("run", 1, "evaluate", fingerprint=PLAN) == reply

    def test_an_answered_round_whose_reply_is_gone_is_refused(self, ledger):
        answer(ledger, 1)
        answer(ledger, 2)
        for call in (
            lambda: ledger.stored("run", 1, fingerprint=PLAN),
            lambda: ledger.charge(charge(1)),
            lambda: ledger.store("run", 1, "train", b"second"),
        ):
            assert refusal(call).code is Code.PRIVACY_BUDGET
        assert len(ledger.history().charges) == 2

    def test_another_plan_is_refused_for_the_same_run(self, ledger):
        answer(ledger, 1)
        other = "b" * 64
        assert refusal(ledger.stored, "run", 1, fingerprint=other).code is Code.PLAN_MISMATCH
        assert refusal(ledger.charge, charge(2, plan=other)).code is Code.PLAN_MISMATCH
        assert ledger.charge(charge(1, run="another", plan=other))

    def test_the_number_of_replies_kept_is_bounded(self, ledger):
        for number in range(KEPT_REPLIES + 5):
            answer(ledger, 1, run=f"run {number}")
        kept = 0
        for number in range(KEPT_REPLIES + 5):
            try:
                kept += ledger.stored(f"run {number}", 1, fingerprint=PLAN) is not None
            except LoricaError as error:
                assert error.code is Code.PRIVACY_BUDGET
        assert kept == KEPT_REPLIES


class TestUnansweredCharges:
    def test_an_unanswered_charge_pays_for_a_few_more_attempts(self, ledger):
        first = ledger.charge(charge(1))
        for _ in range(FREE_RETRIES):
            assert ledger.charge(charge(1)) == first
        assert ledger.charge(charge(1)).lifetime > first.lifetime
        assert len(ledger.history().charges) == 2

    def test_every_attempt_is_written_down(self, ledger):
        for _ in range(3):
            ledger.charge(charge(1))
        assert ledger.history().retries[2] == 2

    def test_other_work_is_charged_anew_and_the_first_charge_stays(self, ledger):
        ledger.charge(charge(1))
        ledger.charge(charge(1, sigma=10.0))
        assert [c.charge.events[0].noise_multiplier for c in ledger.history().charges] == [20, 10]

    def test_of_two_attempts_at_one_charge_one_reply_can_leave(self, tmp_path):
        path = tmp_path / "ledger.sqlite"
        one, other = open_ledger(path), open_ledger(path)
        one.charge(charge(1))
        other.charge(charge(1))
        assert one.store("run", 1, "train", b"first") == b"first"
        assert other.store("run", 1, "train", b"second") == b"first"
        assert len(one.history().charges) == len(one.history().done) == 1

    def test_nothing_leaves_without_a_charge(self, ledger):
        assert refusal(ledger.store, "run", 1, "train", b"reply").code is Code.PRIVACY_BUDGET


class TestBudgets:
    def test_a_charge_over_the_lifetime_budget_is_refused_and_says_what_is_left(self, tmp_path):
        ledger = open_ledger(tmp_path / "l", budgets=Budgets(lifetime=0.1, run=math.inf))
        ledger.charge(charge(1, sigma=50.0))
        ledger.charge(charge(1, run="second", sigma=50.0))
        error = refusal(ledger.charge, charge(1, run="third", sigma=2.0))
        assert error.code is Code.PRIVACY_BUDGET
        said = f"{epsilon_text(ledger.spending().lifetime, 3)} is spent"
        for part in ("lifetime", said, "left", "Nothing was charged"):
            assert part in error.detail
        assert len(ledger.history().charges) == 2
        assert [refused.budget for refused in ledger.history().refused] == ["lifetime"]

    def test_the_site_s_run_budget_and_the_plan_s_both_hold(self, tmp_path):
        cost = epsilon([PrivacyEvent(20.0, 0.1, 4)], 1e-5)
        ledger = open_ledger(tmp_path / "l", budgets=Budgets(lifetime=math.inf, run=1.01 * cost))
        ledger.charge(charge(1))
        assert "by the site's policy" in refusal(ledger.charge, charge(2)).detail
        tight = charge(1, run="second", run_epsilon=0.9 * cost)
        assert "by its plan" in refusal(ledger.charge, tight).detail
        assert ledger.charge(charge(1, run="third"))

    def test_the_plan_s_budget_is_compared_at_the_plan_s_delta(self):
        event = PrivacyEvent(20.0, 0.1, 4)
        at_ledger, at_plan = epsilon([event], 1e-5), epsilon([event], 1e-7)
        between = (at_ledger + at_plan) / 2
        ledger = MemoryLedger(1e-5)
        ledger.charge(charge(1, run_epsilon=between))
        strict = charge(1, run="second", run_epsilon=between, run_delta=1e-7)
        assert refusal(ledger.charge, strict).code is Code.PRIVACY_BUDGET

    def test_a_run_calibrated_to_its_whole_budget_gets_all_its_rounds(self, tmp_path):
        rounds, rate, steps = 6, 0.1, 3
        sigma = calibrate_noise(2.0, 1e-5, rate, rounds * steps)
        ledger = open_ledger(tmp_path / "l", budgets=Budgets(lifetime=2.0, run=2.0))
        work = {"sigma": sigma, "rate": rate, "steps": steps, "run_epsilon": 2.0}
        for round in range(1, rounds + 1):
            spent = ledger.charge(charge(round, **work))
            ledger.store("run", round, "train", b"")
        exact = epsilon([PrivacyEvent(sigma, rate, rounds * steps)], 1e-5)
        assert exact == pytest.approx(spent.lifetime, rel=1e-3)
        assert spent.lifetime <= 2.0
        assert refusal(ledger.charge, charge(rounds + 1, **work)).code is Code.PRIVACY_BUDGET

    def test_a_run_without_privacy_is_refused_unless_every_budget_is_inf(self):
        bare = charge(1, sigma=0.0)
        assert refusal(MemoryLedger(1e-5, budgets=Budgets()).charge, bare).code is (
            Code.PRIVACY_BUDGET
        )
        assert MemoryLedger(1e-5).charge(bare).lifetime == math.inf

    def test_several_charges_are_written_together_or_not_at_all(self, tmp_path):
        cost = epsilon([PrivacyEvent(20.0, 0.1, 4)], 1e-5)
        ledger = open_ledger(tmp_path / "l", budgets=Budgets(lifetime=1.05 * cost, run=math.inf))
        pair = (charge(1), charge(1, kind="evaluate"))
        assert refusal(ledger.charge, *pair).code is Code.PRIVACY_BUDGET
        assert ledger.history().charges == []
        events = (PrivacyEvent(20.0, 0.1, 3), PrivacyEvent(60.0, 0.1, 1))
        ledger.charge(Charge("run", 1, "train", events, "record", PLAN))
        assert ledger.history().events() == list(events)

    def test_a_charge_in_another_unit_is_refused(self, ledger):
        error = refusal(ledger.charge, charge(1, unit="patient_id"))
        assert error.code is Code.LEDGER_MISMATCH

    def test_a_coordinator_cannot_fill_the_ledger_by_asking(self):
        ledger = MemoryLedger(1e-5, budgets=Budgets(lifetime=1e-9, run=1e-9))
        for number, _ in itertools.product(range(REFUSALS_PER_DAY + 20), range(2)):
            refusal(ledger.charge, charge(1, run=f"run {number}"))
        assert len(ledger.history().refused) == REFUSALS_PER_DAY

    def test_names_from_a_coordinator_are_bounded(self):
        assert refusal(charge, 1, run="x" * 1000).code is Code.MESSAGE_MALFORMED

    def test_a_change_of_the_site_s_budgets_is_written_into_the_chain(self, tmp_path):
        path = tmp_path / "l"
        for budgets in (OPEN, OPEN, Budgets(lifetime=5.0)):
            open_ledger(path, budgets=budgets).close()
        assert [
            held for _, held in open_ledger(path, budgets=Budgets(lifetime=5.0)).history().budgets
        ] == [OPEN, Budgets(lifetime=5.0)]

    @pytest.mark.parametrize(
        "change", [{"data_set": "others"}, {"unit": "patient_id"}, {"delta": 1e-6}]
    )
    def test_a_ledger_of_another_guarantee_is_not_opened(self, tmp_path, change):
        open_ledger(tmp_path / "l").close()
        assert refusal(open_ledger, tmp_path / "l", **change).code is Code.LEDGER_MISMATCH

    def test_a_missing_ledger_is_not_made_unasked(self, tmp_path):
        path = tmp_path / "l"
        assert refusal(open_ledger, path, create=False).code is Code.LEDGER_MISSING
        path.touch()
        assert refusal(open_ledger, path, create=False).code is Code.LEDGER_MISSING


class TestPeriods:
    @pytest.mark.parametrize(
        ("time", "month", "quarter", "year"),
        [
            ("2026-03-31T23:59:59.999999+00:00", "2026-03", "2026-Q1", "2026"),
            ("2026-04-01T00:00:00+00:00", "2026-04", "2026-Q2", "2026"),
            ("2026-12-31T23:59:59+00:00", "2026-12", "2026-Q4", "2026"),
            ("2027-01-01T00:30:00+01:00", "2026-12", "2026-Q4", "2026"),
        ],
    )
    def test_periods_end_at_midnight_utc(self, time, month, quarter, year):
        moment = datetime.fromisoformat(time)
        assert period_of(moment, "month") == month
        assert period_of(moment, "quarter") == quarter
        assert period_of(moment, "year") == year

    def test_a_period_s_budget_is_whole_again_when_the_next_begins(self):
        now = [datetime(2026, 1, 31, 23, 59, 59, 999999, tzinfo=UTC)]
        cost = epsilon([PrivacyEvent(20.0, 0.1, 4)], 1e-5)
        budgets = Budgets(math.inf, math.inf, "month", 1.01 * cost)
        ledger = MemoryLedger(1e-5, budgets=budgets, clock=lambda: now[0])
        ledger.charge(charge(1))
        assert "2026-01" in refusal(ledger.charge, charge(2)).detail
        now[0] += timedelta(microseconds=1)
        spent = ledger.charge(charge(2))
        assert spent.period == pytest.approx(cost, rel=0.01)
        assert spent.lifetime == pytest.approx(epsilon([PrivacyEvent(20.0, 0.1, 8)], 1e-5), 0.01)

    def test_local_time_does_not_shift_a_period(self):
        east = timezone(timedelta(hours=14))
        now = [datetime(2026, 2, 1, 13, 59, tzinfo=east)]  # 2026-01-31 23:59 UTC
        ledger = MemoryLedger(1e-5, budgets=Budgets(period="month"), clock=lambda: now[0])
        ledger.charge(charge(1))
        assert ledger.history().events(within=("month", "2026-01"))

    def test_setting_the_clock_back_opens_no_earlier_period(self):
        now = [datetime(2026, 5, 1, tzinfo=UTC)]
        cost = epsilon([PrivacyEvent(20.0, 0.1, 4)], 1e-5)
        budgets = Budgets(math.inf, math.inf, "month", 1.01 * cost)
        ledger = MemoryLedger(1e-5, budgets=budgets, clock=lambda: now[0])
        ledger.charge(charge(1))
        now[0] = datetime(2026, 4, 1, tzinfo=UTC)
        assert refusal(ledger.charge, charge(2)).code is Code.PRIVACY_BUDGET
