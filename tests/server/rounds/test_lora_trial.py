"""When LoRA rounds are given up, and what is left then."""

from __future__ import annotations

import pytest
import torch

from lorica.common.plan import RunPlan
from lorica.server.results.round import RoundRecord
from lorica.server.rounds.lora_trial import LoraTrial

BEFORE, LAST = 8, 12


def plan(**training: object) -> RunPlan:
    """12 rounds, the last 4 of LoRA."""
    return RunPlan().replace(
        rounds={"count": LAST, "evaluate_every": 4}, training={"lora_rounds": 4} | training
    )


def verdict(run: RunPlan, before: float | None, after: float | None) -> bool:
    earlier = [RoundRecord(4, site_accuracy=0.99), RoundRecord(BEFORE, site_accuracy=before)]
    return LoraTrial(run).lost(RoundRecord(LAST, site_accuracy=after), lambda: earlier)


@pytest.mark.parametrize(
    "before, after, lost",
    [(0.7, 0.71, False), (0.7, 0.7, True), (0.7, 0.6, True), (None, 0.9, True), (0.7, None, True)],
)
def test_lora_is_lost_unless_the_sites_accuracy_rose(
    before: float | None, after: float | None, lost: bool
) -> None:
    assert verdict(plan(), before, after) is lost


def test_both_scores_are_the_tasks_headline_whatever_their_records_say() -> None:
    """A run that an earlier version began wrote another name beside its rounds."""
    run = plan().replace(
        task={"kind": "text-regression"}, privacy={"evaluation_metrics": ["loss", "r2"]}
    )
    earlier = [RoundRecord(BEFORE, headline="r2", site_metrics={"r2": 0.3, "loss": 0.1})]
    last = RoundRecord(LAST, headline="accuracy", site_metrics={"r2": 0.9, "loss": 0.05})
    assert not LoraTrial(run).lost(last, lambda: earlier)


def test_nothing_is_on_trial_before_the_last_round_or_when_lora_is_no_question() -> None:
    earlier = [RoundRecord(BEFORE, site_accuracy=0.7)]
    assert not LoraTrial(plan()).lost(RoundRecord(LAST - 1), lambda: earlier)
    assert not verdict(plan(lora="always"), 0.7, 0.1)
    assert not verdict(plan(lora="never"), 0.7, 0.1)
    assert not verdict(plan().replace(privacy={"epsilon": float("inf")}), 0.7, 0.1)


def test_the_state_of_the_last_head_round_and_no_other_is_kept() -> None:
    state, trial = {"x": torch.ones(3)}, LoraTrial(plan())
    memory = {"moment": torch.zeros(2)}
    assert trial.keep(BEFORE - 1, state, memory) is memory
    kept = trial.keep(BEFORE, state, memory)
    state["x"] += 1
    assert torch.equal(trial.before(["x"], kept)["x"], torch.ones(3))
    assert torch.equal(kept["moment"], memory["moment"])
