"""Training and test part of a run's data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks.run_data import RunData, label_sources, load_data, with_labels

Refuses = Callable[[Code, Callable[[], object]], str]


def plan_for(path: Path, seed: int = 0, unit: str = "", test: str = "") -> RunPlan:
    data = {"train": str(path), "unit": unit, "test": test}
    return RunPlan().replace(data=data, simulation={"seed": seed})


def write(path: Path, units: list[int]) -> Path:
    rows = [f"text {i},{'ab'[i % 2]},u{unit}" for i, unit in enumerate(units)]
    path.write_text("\n".join(["text,label,id", *rows]) + "\n")
    return path


@settings(max_examples=50, deadline=None)
@given(units=st.lists(st.integers(0, 20), min_size=2, max_size=120), seed=st.integers(0, 2**40))
def test_a_split_keeps_every_record_and_never_separates_a_unit(
    tmp_path_factory: pytest.TempPathFactory, units: list[int], seed: int
) -> None:
    if len(set(units)) < 2:
        units = [*units, units[0] + 1]
    path = write(tmp_path_factory.getbasetemp() / "split.csv", units)
    data = load_data(plan_for(path, seed, unit="id"))
    assert not set(data.train.units) & set(data.test.units)
    assert Counter(data.train.texts + data.test.texts) == Counter(
        f"text {i}" for i in range(len(units))
    )
    aside = len(set(data.test.units))
    assert aside == max(1, round(0.2 * len(set(units))))
    assert len(data.train) > 0


@pytest.mark.parametrize("unit", ["", "id"])
def test_a_fifth_is_set_aside_the_same_for_one_seed_and_another_for_another(
    tmp_path: Path, unit: str
) -> None:
    path = write(tmp_path / "d.csv", list(range(1000)))
    first, again, other = (load_data(plan_for(path, seed, unit)) for seed in (7, 7, 8))
    assert len(first.test) == 200 and len(first.train) == 800
    assert first == again
    assert first.test.texts != other.test.texts
    assert len(set(first.test.texts) & set(other.test.texts)) < 80  # 40 expected


def test_the_split_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.csv", list(range(50))).read_text().splitlines()
    (tmp_path / "b.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    parts = [load_data(plan_for(tmp_path / f"{name}.csv", unit="id")).test for name in "ab"]
    assert sorted(parts[0].texts) == sorted(parts[1].texts)


def test_one_unit_is_refused_not_taken_for_test_data_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", [1] * 10)
    with pytest.raises(LoricaError) as caught:
        load_data(plan_for(path, unit="id"))
    assert caught.value.code.value.startswith("LOR-3")
    assert str(path) in caught.value.detail


def test_a_test_file_is_used_whole_and_leaves_the_training_file_whole(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", [1, 2, 3])
    test = tmp_path / "test.csv"
    test.write_text("text,label\na,b\nc,d\n")  # need not say whose its records are
    data = load_data(plan_for(train, unit="id", test=str(test)))
    assert (len(data.train), len(data.test)) == (3, 2)


def test_a_test_file_that_is_not_there_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    train = write(tmp_path / "train.csv", [1, 2, 3])
    plan = plan_for(train, test=str(tmp_path / "absent.csv"))
    assert "absent.csv" in refuses(Code.DATA_NOT_FOUND, lambda: load_data(plan))


def test_the_packaged_data_set_brings_its_own_test_part() -> None:
    data = load_data(RunPlan().replace(privacy={"unit": "patient_id"}))
    assert not set(data.train.units) & set(data.test.units)
    assert len(data.test) > 100


def test_the_dividing_column_is_read_only_when_it_divides(tmp_path: Path) -> None:
    plan = plan_for(write(tmp_path / "d.csv", [1, 2, 3, 4, 5]))
    assert set(load_data(plan).train.groups) == {""}
    plan = plan.replace(simulation={"partition": "by-column", "column": "id"})
    assert set(load_data(plan).train.groups) < {"u1", "u2", "u3", "u4", "u5"}


def labelled(*labels: str) -> Records:
    count = len(labels)
    return Records(["t"] * count, list(labels), [str(i) for i in range(count)], [""] * count)


def test_labels_come_sorted_from_the_training_data_when_the_plan_has_none() -> None:
    plan = with_labels(RunPlan(), labelled("b", "a", "c", "a"))
    assert plan.task.labels == ["a", "b", "c"]
    assert plan.replace(task={"labels": []}) == RunPlan()


def test_labels_of_all_given_data_count() -> None:
    plan = with_labels(RunPlan(), labelled("b", "b"), labelled("a", "b"))
    assert plan.task.labels == ["a", "b"]


def test_labels_are_learned_from_the_training_file_but_not_from_a_test_file() -> None:
    data = RunData(labelled("a", "b"), labelled("a", "c"))
    plan = RunPlan()
    assert with_labels(plan, *label_sources(plan, data)).task.labels == ["a", "b", "c"]
    plan = plan.replace(data={"test": "test.csv"})
    assert with_labels(plan, *label_sources(plan, data)).task.labels == ["a", "b"]


def test_the_plans_own_labels_stay_in_their_order() -> None:
    plan = RunPlan().replace(task={"labels": ["z", "a"]})
    assert with_labels(plan, labelled("a", "a")) is plan


@pytest.mark.parametrize("labels", [[], ["only"], ["only"] * 5])
def test_fewer_than_two_labels_are_refused(labels: list[str], refuses: Refuses) -> None:
    detail = refuses(Code.DATA_TOO_FEW_LABELS, lambda: with_labels(RunPlan(), labelled(*labels)))
    assert f"{len(set(labels))} label(s)" in detail
