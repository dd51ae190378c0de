"""Labels and sites that only look alike: refused by name, merged, or kept; never silent."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import pytest

from lorica.common.data.names.alike import shown_spelling
from lorica.common.data.names.plan_labels import label_indices
from lorica.common.data.records import Records, read_records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.subject import DataPlan
from lorica.common.tasks.run_data import label_sources, load_data, with_labels

NAIVE = "na\u00efve"
ALIKE = [
    ("billing", "Billing"),
    ("billing", "billing\u00a0"),
    ("billing", "bil\u200bling"),
    (NAIVE, unicodedata.normalize("NFD", NAIVE)),
    ("card arrival", "card  arrival"),
    ("1", "1.0"),
    ("250", "250.00"),
    ("true", "True"),
    ("ﬁre", "fire"),
]


def write(path: Path, labels: list[str], sites: list[str] | None = None) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = zip(labels, sites or [""] * len(labels), strict=True)
        listed = [[f"text {row}", label, site] for row, (label, site) in enumerate(rows)]
        csv.writer(file).writerows([["text", "label", "site"], *listed])
    return path


def plan_of(path: Path, **data: str) -> RunPlan:
    return RunPlan().replace(data={"train": str(path), **data})


@pytest.mark.parametrize(("first", "second"), ALIKE)
def test_two_spellings_are_refused_and_both_named(first: str, second: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", [first, "other", second])
    with pytest.raises(LoricaError) as caught:
        read_records(str(path), DataPlan())
    assert caught.value.code is Code.DATA_ALIKE
    assert shown_spelling(first) in caught.value.detail
    assert shown_spelling(second) in caught.value.detail
    assert "record 3" in caught.value.detail
    assert "data.alike=merge" in caught.value.mend


@pytest.mark.parametrize(("first", "second"), ALIKE)
def test_merged_spellings_are_one_label_the_most_frequent(
    first: str, second: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "d.csv", [second, first, "other", first, "other", first])
    plan = plan_of(path, alike="merge")
    data = load_data(plan)
    labels = {*data.train.labels, *data.test.labels}
    assert len(labels) == 2
    assert len(with_labels(plan, *label_sources(plan, data)).task.labels) == 2


def test_what_cannot_be_seen_is_in_no_merged_name(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.csv", ["billing\u00a0", "ship\u200bping", "billing\u00a0", "Shipping"]
    )
    data = load_data(plan_of(path, alike="merge"))
    found = {*data.train.labels, *data.test.labels}
    assert "billing" in found
    assert found - {"billing"} <= {"shipping", "Shipping"}
    assert len(found) == 2


def test_the_plans_own_spelling_stands_for_all(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", ["billing", "billing", "BILLING", "x"] * 3)
    plan = plan_of(path, alike="merge").replace(task={"labels": ["Billing", "X"]})
    data = load_data(plan)
    assert {*data.train.labels, *data.test.labels} == {"Billing", "X"}


def test_the_test_files_spelling_is_the_training_files(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", ["billing", "shipping"] * 3)
    test = write(tmp_path / "test.csv", ["Billing", "SHIPPING"])
    merged = load_data(plan_of(train, test=str(test), alike="merge"))
    assert set(merged.test.labels) == set(merged.train.labels)
    plan = plan_of(train, test=str(test))
    apart = load_data(plan)
    with pytest.raises(LoricaError, match=r"'Billing'") as caught:
        label_indices(apart.test, with_labels(plan, apart.train).task.labels, where="test.csv")
    assert "looks like 'billing'" in caught.value.mend


def test_kept_spellings_stay_two_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", ["250.0", "250.00", "250", "250.0"])
    plan = plan_of(path, alike="keep")
    data = load_data(plan)
    found = with_labels(plan, *label_sources(plan, data)).task.labels
    assert found == ["250", "250.0", "250.00"]


@pytest.mark.parametrize(("first", "second"), ALIKE)
def test_sites_are_treated_as_labels_are(first: str, second: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", ["a", "b", "a", "b"], [first, second, "south", first])
    with pytest.raises(LoricaError) as caught:
        read_records(str(path), DataPlan(), group="site")
    assert caught.value.code is Code.DATA_ALIKE
    assert "column 'site'" in caught.value.detail
    simulation = {"partition": "by-column", "column": "site"}
    plan = plan_of(path, alike="merge").replace(simulation=simulation)
    data = load_data(plan)
    assert len({*data.train.groups, *data.test.groups}) == 2


def test_sets_of_labels_are_refused_or_merged_too(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", ["red|Tall", "tall", "red", "RED|tall"] * 2)
    plan = plan_of(path).replace(
        task={"kind": "multi-label-classification"},
        privacy={"evaluation_metrics": ["accuracy"]},
    )
    with pytest.raises(LoricaError) as caught:
        with_labels(plan, load_data(plan).train, load_data(plan).test)
    assert caught.value.code is Code.DATA_ALIKE
    merged = plan.replace(data={"alike": "merge"})
    data = load_data(merged)
    named = with_labels(merged, data.train, data.test)
    assert len(named.task.labels) == 2


def test_answers_and_numbers_are_no_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", ["Yes", "yes", "YES ", "1.0"])
    found = read_records(str(path), DataPlan(), labels_are_names=False)
    assert found.labels == ["Yes", "yes", "YES", "1.0"]


def test_only_merged_records_find_the_plans_label_that_they_look_like() -> None:
    records = Records(["t"], ["BILLING"], ["0"], [""])
    with pytest.raises(LoricaError, match="BILLING"):
        label_indices(records, ["x", "Billing"], where="here")
    merged = Records(["t"], ["BILLING"], ["0"], [""], merged=True)
    assert label_indices(merged, ["x", "Billing"], where="here") == [1]
    with pytest.raises(LoricaError):  # of two that it looks like, it is neither
        label_indices(merged, ["billing", "Billing"], where="here")
