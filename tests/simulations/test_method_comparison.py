"""The comparison of methods: its files make valid plans, and only validation data choose."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "methods"


@pytest.fixture(scope="module")
def grid() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    import grid

    yield grid
    sys.path.remove(str(FOLDER))


def runs(grid: ModuleType, method: Any) -> list[Any]:
    found = [run for epsilon in grid.EPSILONS for run in grid.tests_of(method, epsilon, -1)]
    if method.trials:
        found = [run for epsilon in grid.EPSILONS for run in grid.tests_of(method, epsilon, 0)]
        found += [run for e in (grid.TUNED_AT, float("inf")) for run in grid.trials_of(method, e)]
    return found


def test_every_method_makes_valid_plans_on_every_data_set(grid: ModuleType) -> None:
    for dataset in grid.datasets().values():
        for method in grid.methods():
            for run in runs(grid, method):
                plan = grid.plan_of(dataset, run)
                assert plan.privacy.epsilon == run.epsilon
                assert (plan.training.mode == "local") == (method.kind == "local")


def test_every_method_has_as_many_trials_scored_on_validation_data(grid: ModuleType) -> None:
    for method in grid.methods():
        assert len(method.trials) in ((0,) if method.name == "class-sums" else (3,))
        for run in grid.trials_of(method, 8.0):
            assert (run.score, run.seed) == ("validation", grid.TRIAL_SEED)


def test_local_methods_have_the_same_rounds_steps_batch_and_warm_start(grid: ModuleType) -> None:
    for dataset in grid.datasets().values():
        plans = [
            grid.plan_of(dataset, runs(grid, method)[0])
            for method in grid.methods()
            if method.kind == "local"
        ]
        assert len(plans) > 10
        shared = {
            (
                plan.rounds.count,
                plan.rounds.warm_start,
                plan.training.local_steps,
                plan.training.expected_batch_size,
                plan.adapter.rank,
                plan.privacy.clip_norm,
            )
            for plan in plans
        }
        assert len(shared) == 1


def test_runs_are_told_apart_by_what_matters_alone(grid: ModuleType) -> None:
    """Head alone is the default where the default has no LoRA rounds, and only there."""
    dataset = grid.datasets()["banking77"]
    default, head = (
        next(m for m in grid.methods() if m.name == name) for name in ("default", "head-alone")
    )

    def key(method: Any, epsilon: float, seed: int = 0, score: str = "test") -> str:
        found: str = grid.key_of(dataset, grid.Run(method, epsilon, seed, 0, score))
        return found

    assert key(default, 8.0) == key(head, 8.0)
    assert key(default, float("inf")) != key(head, float("inf"))
    assert len({key(head, 8.0), key(head, 3.0), key(head, 8.0, 1), key(head, 8.0, 0, "valid")}) == 4
