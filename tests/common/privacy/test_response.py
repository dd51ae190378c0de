"""Randomised response: its probabilities, and that no accounting of it says too little."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from pydantic import ValidationError
from scipy.special import erfc

from lorica.client.ledger.composer import Composer
from lorica.common.plan import RunPlan
from lorica.common.plan.subject import LEAST_BIT, MOST_BIT
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent, told
from lorica.common.privacy.filter import Tally, filter_for
from lorica.common.privacy.of_plan import public_privacy, run_privacy
from lorica.common.privacy.renyi import ORDERS, divergences_of, renyi_epsilon
from lorica.common.privacy.response import LEAST, MOST, response_noise, truth

BITS = [LEAST, 0.1, 0.5, 1.0, 2.0, 4.0, MOST]
DELTA = 1e-5


@pytest.mark.parametrize("bit", BITS)
def test_the_noise_tells_the_truth_no_more_often_than_epsilon_says(bit: float) -> None:
    """Φ(1/(2σ)) against p, by their complements, where large ε leave little."""
    contrary = erfc(1 / (2 * response_noise(bit)) / math.sqrt(2)) / 2
    assert contrary >= truth(-bit) and contrary == pytest.approx(truth(-bit), rel=1e-9)
    assert truth(bit) / truth(-bit) == pytest.approx(math.exp(bit), rel=1e-12)


def test_a_plan_may_ask_for_the_bits_that_there_are() -> None:
    assert (LEAST_BIT, MOST_BIT) == (LEAST, MOST)
    for bit in (LEAST / 2, MOST * 1.01, -1.0, math.nan):
        with pytest.raises(ValueError, match="epsilon lies between"):
            response_noise(bit)


def test_an_event_is_a_bit_with_that_noise_or_none() -> None:
    event = PrivacyEvent.of_response(2.0)
    assert (event.noise_multiplier, event.sample_rate, event.steps) == (response_noise(2.0), 1, 1)
    assert told([event, replace(event, steps=3), PrivacyEvent(1.0, 1.0, 5)]) == 8.0
    for wrong in ({"noise_multiplier": 9.0}, {"sample_rate": 0.5}):
        with pytest.raises(ValueError, match="no such bit"):
            replace(event, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("bit", BITS)
def test_its_divergence_is_the_sum_over_its_two_answers(bit: float) -> None:
    yes, no = truth(bit), truth(-bit)
    found = divergences_of(PrivacyEvent.of_response(bit))
    for order, value in zip(ORDERS, found, strict=True):
        if 1.1 < order < 60:
            exact = math.log(yes**order * no ** (1 - order) + no**order * yes ** (1 - order))
            assert value == pytest.approx(exact / (order - 1), rel=1e-6, abs=1e-9)
    assert (found <= bit * (1 + 1e-8)).all() and (found > 0).all()
    assert (np.diff(found) >= -1e-9).all(), "rises with the order"


def of_pld(events: list[PrivacyEvent], delta: float) -> float:
    """ε by dp-accounting, bits as what they are."""
    total = pld.identity(value_discretization_interval=1e-4)
    for event in events:
        for _ in range(event.steps):
            if event.response:
                one = pld.from_randomized_response(
                    2 * truth(-event.response), 2, value_discretization_interval=1e-4
                )
            else:
                one = pld.from_gaussian_mechanism(
                    event.noise_multiplier,
                    sampling_prob=event.sample_rate,
                    value_discretization_interval=1e-4,
                )
            total = total.compose(one)
    return float(total.get_epsilon_for_delta(delta))


@pytest.mark.parametrize("bit", [0.1, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_every_accounting_is_at_least_dp_accountings(bit: float, rate: float) -> None:
    """And the accountant's is at most ε of the rest and ε of the bit."""
    rest = [PrivacyEvent(2.0, rate, 3)]
    events = [*rest, PrivacyEvent.of_response(bit)]
    exact = of_pld(events, DELTA) - 1e-3  # of its grid
    found = epsilon(events, DELTA)
    assert exact <= found <= epsilon(rest, DELTA) + bit
    composed = Composer(DELTA).epsilon(events)
    assert exact <= composed <= 1.01 * epsilon(rest, DELTA) + bit
    assert exact <= renyi_epsilon(events, DELTA)
    for known in (tuple(rest), tuple(events)):
        chosen, tally = filter_for(20.0, DELTA, known), Tally()
        tally.add(events)
        assert exact <= chosen.epsilon(tally)


def test_alone_a_bit_costs_its_epsilon() -> None:
    for bit in (0.5, 2.0):
        event = PrivacyEvent.of_response(bit)
        assert epsilon([event], DELTA) == pytest.approx(bit)
        assert epsilon([replace(event, steps=2)], DELTA) == pytest.approx(2 * bit)


def test_who_does_not_know_bits_overstates_them() -> None:
    """The event without its mark is a Gaussian mechanism, of a larger ε."""
    for bit in (0.5, 2.0, 4.0):
        event = PrivacyEvent.of_response(bit)
        unmarked = PrivacyEvent(event.noise_multiplier, 1.0, 1)
        assert epsilon([unmarked], DELTA) > bit
        assert (divergences_of(unmarked) >= divergences_of(event) - 1e-9).all()


@pytest.mark.parametrize("mode", ["gradient", "local"])
def test_the_bit_is_part_of_the_plans_epsilon(mode: str) -> None:
    plan = RunPlan().replace(
        privacy={"epsilon": 6.0, "benefit_epsilon": 2.0},
        training={"mode": mode, "lora": "never"},
        rounds={"count": 5, "evaluate_every": 5},
    )
    privacy = run_privacy(plan, 1000)
    bit = privacy.benefit
    assert bit == PrivacyEvent.of_response(2.0) and bit in privacy.whole
    assert 5.9 < epsilon(privacy.whole, plan.privacy.delta) <= 6.0
    rest = privacy.events(5, 1)
    assert 3.95 < epsilon(rest, plan.privacy.delta) <= 4.0
    assert [*rest, bit] == privacy.events(5, 1, benefit=True)
    assert public_privacy(plan.replace(privacy={"benefit_epsilon": 0.0})).benefit is None
    assert plan.benefit_round == 6 and RunPlan().benefit_round == 0


@pytest.mark.parametrize(
    ("privacy", "why"),
    [
        ({"epsilon": 2.0, "benefit_epsilon": 2.0}, "not below it"),
        ({"benefit_epsilon": 1e-4}, "0 or at least"),
        ({"benefit_epsilon": 11.0}, "less than or equal to 10"),
        ({"benefit_epsilon": 1.0, "trust": "sum", "honest_sites": 2}, "nothing of a single site"),
    ],
)
def test_a_plan_that_asks_for_what_cannot_be_is_refused(
    privacy: dict[str, object], why: str
) -> None:
    with pytest.raises(ValidationError, match=why):
        RunPlan().replace(privacy=privacy, rounds={"minimum_sites": 2})
