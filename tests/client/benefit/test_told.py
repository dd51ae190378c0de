"""The bit about the guard: as often true as its ε says, on the grid too, and no more than a bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lorica.client.mechanism.noise as noise_module
from lorica.client.benefit.compared import compare_models
from lorica.client.benefit.told import keeps_own, told
from lorica.client.mechanism.noise import DerivedNoise, SecureNoise, SeededNoise
from lorica.common.backbone.loading import backbone_of
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.response import response_noise, truth
from lorica.common.tasks import task_of
from tests.client.benefit.test_compared import mixed_up, own

MANY = 4000


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_either_bit_is_told_truly_as_often_as_epsilon_says(epsilon: float) -> None:
    """Against the binomial distribution: five standard errors, one run in a million."""
    event, source = PrivacyEvent.of_response(epsilon), SecureNoise()
    right, error = truth(epsilon), math.sqrt(truth(epsilon) * truth(-epsilon) / MANY)
    for bit in (True, False):
        share = sum(told(bit, event, source) == bit for _ in range(MANY)) / MANY
        assert abs(share - right) < 5 * error


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 9.0])
@pytest.mark.parametrize("bit", [True, False])
def test_the_grid_moves_the_border_by_nothing(
    epsilon: float, bit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a draw a trifle to either side of the border at which the sign of ±1/2 + σz changes."""
    event, sigma = PrivacyEvent.of_response(epsilon), response_noise(epsilon)
    border = (-0.5 if bit else 0.5) / sigma
    for side in (-1, 1):
        drawn = border + side * 2.0**-30
        monkeypatch.setattr(
            noise_module, "standard_normal", lambda words, z=drawn: np.full(len(words) // 2, z)
        )
        assert told(bit, event, SeededNoise(0)) == (side > 0)


def test_an_answer_is_the_same_when_asked_again_and_other_bits_have_noise_of_their_own() -> None:
    """Of derived noise: two bits under one request agree as often as independent answers do,
    2·p·(1 - p), over many secrets."""
    event, agree = PrivacyEvent.of_response(2.0), 0
    for number in range(MANY):
        secret = number.to_bytes(32)
        found = [told(bit, event, DerivedNoise(secret, "run")) for bit in (True, False)]
        assert found[0] == told(True, event, DerivedNoise(secret, "run"))
        agree += found[0] == found[1]
    chance = 2 * truth(2.0) * truth(-2.0)
    assert abs(agree / MANY - chance) < 5 * math.sqrt(chance * (1 - chance) / MANY)


def test_another_event_is_no_bit() -> None:
    for event in (PrivacyEvent(1.0, 1.0, 1), PrivacyEvent(response_noise(1.0), 1.0, 2, 1.0)):
        with pytest.raises(ValueError, match="not one bit"):
            told(True, event, SecureNoise())


def test_the_guards_decision_is_what_is_told(tmp_path: Path, small_backbone: Path) -> None:
    plan, given = own("text-classification", tmp_path, small_backbone, 240)
    backbone, harmful = backbone_of(plan), mixed_up(plan, given)
    assert keeps_own(plan, backbone, lambda: given, harmful)
    helpful = compare_models(plan, backbone, given, task_of(plan).start(backbone), draws=0)
    assert not keeps_own(plan, backbone, lambda: given, helpful.states["own"])
    head = {name: t for name, t in harmful.items() if name.startswith("head.")}
    assert keeps_own(plan, backbone, lambda: given, head), "what is not sent is as it began"


def test_a_comparison_that_fails_tells_what_one_without_harm_does(
    tmp_path: Path, small_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, given = own("text-classification", tmp_path, small_backbone, 40)
    backbone = backbone_of(plan)
    nobody = type(given)(given.records, np.zeros(len(given.records), dtype=bool), True)
    assert not keeps_own(plan, backbone, lambda: nobody, {})

    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError("the 17th record")

    monkeypatch.setattr("lorica.client.benefit.told.compare_models", fails)
    assert not keeps_own(plan, backbone, lambda: given, {})


def test_going_through_all_epochs_changes_nothing_but_the_time(
    tmp_path: Path, small_backbone: Path
) -> None:
    plan, given = own("text-classification", tmp_path, small_backbone, 160)
    backbone = backbone_of(plan)
    start = task_of(plan).start(backbone)
    quick, steady = (
        compare_models(plan, backbone, given, start, draws=20, steady=steady)
        for steady in (False, True)
    )
    assert quick.content() == steady.content()
    assert all(torch.equal(steady.states["own"][n], t) for n, t in quick.states["own"].items())
