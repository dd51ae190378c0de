"""The comparison of methods: its files make valid plans, and only validation data choose."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks" / "methods"


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


def test_every_local_method_has_as_many_trials_scored_on_validation_data(grid: ModuleType) -> None:
    for method in grid.methods():
        assert len(method.trials) == (3 if method.kind == "local" else 0)
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
    """Whether the default trains LoRA is decided when the sites' records are known: so it is never
    taken for the head alone."""
    dataset = grid.datasets()["banking77"]
    default, head = (
        next(m for m in grid.methods() if m.name == name) for name in ("default", "head-alone")
    )

    def key(method: Any, epsilon: float, seed: int = 0, score: str = "test") -> str:
        found: str = grid.key_of(dataset, grid.Run(method, epsilon, seed, -1, score))
        return found

    assert key(default, 8.0) != key(head, 8.0)
    assert key(default, float("inf")) != key(head, float("inf"))
    assert len({key(head, 8.0), key(head, 3.0), key(head, 8.0, 1), key(head, 8.0, 0, "valid")}) == 4


@pytest.fixture
def results(grid: ModuleType, tmp_path: Path) -> Any:
    """Results in which a method's second trial is the best and its seeds are as given."""
    import run

    tuned = run.Book(grid.datasets()[grid.TUNED_ON], tmp_path)
    book = run.Book(grid.datasets()["banking77"], tmp_path, tuned)

    def add(into: Any, which: Any, value: float) -> None:
        key, figures = grid.key_of(into.dataset, which), {"bytes_up": 10**6, "cpu_seconds": 2.0}
        into.add({"key": key, "value": value, "commit": "abc", **figures}, {})

    def enter(name: str, epsilon: float, seeds: list[float]) -> None:
        method = next(m for m in grid.methods() if m.name == name)
        values = (0.3, 0.5, 0.4) if method.trials else ()
        for trial, value in zip(grid.trials_of(method, grid.anchor(epsilon)), values, strict=True):
            add(tuned, trial, value)
        for which, value in zip(grid.tests_of(method, epsilon, 0), [0.99] * 3, strict=True):
            if method.trials:
                add(book, which, value)
        chosen = 1 if method.trials else -1
        for which, value in zip(grid.tests_of(method, epsilon, chosen), seeds, strict=False):
            add(book, which, value)

    return book, enter


def page_of(book: Any, folder: Path) -> str:
    import leaderboard

    leaderboard.write([book], folder)
    return (folder / "leaderboard.md").read_text(encoding="utf-8")


def test_the_page_names_the_first_of_those_with_most_seeds_and_the_settings_that_validation_chose(
    results: Any, tmp_path: Path
) -> None:
    book, enter = results
    enter("default", 8.0, [0.80, 0.82, 0.84])
    enter("fedavg", 8.0, [0.70, 0.71, 0.72])
    enter("ffa", 8.0, [0.95, 0.95])  # a seed is missing: shown, and leads nothing
    enter("trusted-holder", 8.0, [0.9, 0.9, 0.9])  # a reference leads nothing
    page = page_of(book, tmp_path)
    assert "| 82.0 ± 2.0 |" in page and "99.0" not in page
    assert "95.0 (2 seeds)" in page
    assert (
        "- ε = 8 (of 2 methods run so far): Lorica's default is first with 82.0%; FedAvg, the "
        "best with local steps, is 11.0 points behind." in page
    )
    assert "FFA-LoRA" in page[page.index("Not run yet") :]
    assert "Made at `abc` (11 runs)." in page


@pytest.mark.parametrize(
    ("rival", "told"),
    [
        pytest.param(0.835, False, marks=pytest.mark.slow("a whole comparison, made anew")),
        (0.85, True),
    ],
)
def test_where_the_default_is_not_first_the_page_says_by_how_much_and_what_it_means(
    results: Any, tmp_path: Path, rival: float, told: bool
) -> None:
    """Two standard errors of a difference are 1.95 points here."""
    book, enter = results
    enter("default", 3.0, [0.82, 0.82, 0.82])
    enter("fedavg", 3.0, [rival, rival, rival])
    enter("ffa", 3.0, [rival, rival, rival])
    page = page_of(book, tmp_path)
    assert f"FedAvg and FFA-LoRA are first with {100 * rival:.1f}%" in page
    assert f"default is {100 * (rival - 0.82):.1f} points behind" in page
    assert ("3,080 test records cannot tell apart" in page) is not told


def test_equals_of_the_default_are_named_with_it(results: Any, tmp_path: Path) -> None:
    book, enter = results
    enter("default", float("inf"), [0.9, 0.91, 0.92])
    enter("head-alone", float("inf"), [0.92, 0.91, 0.9])
    page = page_of(book, tmp_path)
    assert "Lorica's default and Head alone are first with 91.0%." in page
