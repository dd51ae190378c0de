"""Which state of a run on trial is kept, and by whose word."""

from __future__ import annotations

import math

import pytest
import torch

from lorica.common.adapter.state import State
from lorica.common.plan import RunPlan
from lorica.server.results.round import RoundRecord
from lorica.server.rounds.lora_trial import LoraTrial, Score, of_others, of_validation

BEFORE, LAST = 4, 10
JUDGED = [BEFORE, 6, 8, LAST]


def plan(**training: object) -> RunPlan:
    """10 rounds, the last 6 of LoRA."""
    return RunPlan().replace(
        privacy={"epsilon": math.inf},
        rounds={"count": LAST},
        training={"lora_rounds": 6} | training,
    )


def kept(run: RunPlan, values: list[float | None], error: float = 0.01) -> int | None:
    """The round that is kept, of these scores after the judged rounds."""
    trial, memory = LoraTrial(run), dict[str, torch.Tensor]()
    for round, value in zip(JUDGED, values, strict=True):
        assert trial.judges(round)
        score = None if value is None else Score(value, error)
        memory = trial.keep(round, {"x": torch.tensor([float(round)])}, score, memory)
    found = trial.kept_round(LAST, memory)
    if found is not None:
        assert trial.kept(["x"], memory)["x"].item() == found
    return found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.7, 0.75, 0.8, 0.82], LAST),
        ([0.7, 0.7, 0.7, 0.7], LAST),
        ([0.7, 0.695, 0.7, 0.695], LAST),  # within the error
        ([0.7, 0.6, 0.6, 0.6], BEFORE),
        ([0.7, 0.8, 0.6, 0.75], 6),
        ([0.7, 0.8, 0.79, 0.78], 8),  # no sum of small losses goes unseen
        ([0.7, 0.6, 0.9, None], 8),
        ([0.7, None, None, None], BEFORE),
        ([None, None, None, None], BEFORE),
        ([None, 0.2, 0.1, 0.3], LAST),
    ],
)
def test_the_last_state_that_no_earlier_one_beats_by_more_than_the_error_is_kept(
    values: list[float | None], expected: int
) -> None:
    assert kept(plan(), values) == expected


def test_nothing_is_on_trial_where_lora_is_no_question() -> None:
    for run in (plan(lora="always"), plan(lora="never"), plan(mode="local")):
        trial = LoraTrial(run)
        assert not any(trial.judges(round) for round in range(LAST + 1))
        assert trial.kept_round(LAST, {}) is None


def test_before_the_last_round_nothing_is_decided() -> None:
    trial = LoraTrial(plan())
    memory = trial.keep(BEFORE, {"x": torch.zeros(1)}, Score(0.5, 0.01), {})
    assert trial.kept_round(8, memory) is None
    assert trial.kept_round(LAST, memory) == BEFORE


def test_what_is_kept_is_a_copy_beside_the_optimisers_memory() -> None:
    trial = LoraTrial(plan())
    state: State = {"x": torch.ones(3)}
    memory = trial.keep(BEFORE, state, Score(0.5, 0.01), {"m.x": torch.zeros(2)})
    state["x"] += 1
    assert torch.equal(trial.kept(["x"], memory)["x"], torch.ones(3))
    assert torch.equal(memory["m.x"], torch.zeros(2))


def test_the_score_is_the_tasks_headline_else_accuracy_else_less_the_loss() -> None:
    """Whatever a record of an earlier version says the headline is."""
    metrics = {"entity_f1": 0.3, "accuracy": 0.9, "loss": 0.5}
    run = plan().replace(task={"kind": "token-classification"})
    for left, expected in (
        (metrics, 0.3),
        ({"accuracy": 0.9, "loss": 0.5}, 0.9),
        ({"loss": 0.5}, -0.5),
    ):
        record = RoundRecord(BEFORE, site_metrics=dict(left))
        found = LoraTrial(run).of_sites(record, 0.0)
        assert found is not None and found.value == expected
    assert LoraTrial(run).of_sites(RoundRecord(BEFORE), 0.0) is None


def test_the_error_counts_the_noise_and_the_chance_of_so_many_records() -> None:
    """Of two states that differ on a tenth of n records: √(0.1 / n), and √2 standard deviations of
    the noise in each."""
    record = RoundRecord(BEFORE, site_accuracy=0.8, site_accuracy_band=0.0196)
    found = LoraTrial(plan()).of_sites(record, 1000.0)
    assert found is not None
    assert found.error == pytest.approx(math.hypot(0.01, math.sqrt(2) * 0.01))
    judge = of_validation(0.8, 1000)
    assert judge is not None and judge.error == pytest.approx(0.01)
    assert of_validation(None, 5) is None and of_others(None) is None
    loss = of_validation(-2.0, 5)
    assert loss is not None and loss.error == pytest.approx(0.04)
