"""The data of a simulated or central run: labels, training part and test part of a plan."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lorica.common.data.image_folder import parts_of
from lorica.common.data.kinds import is_path, kind_of, local_path
from lorica.common.data.names.alike import one_spelling
from lorica.common.data.records import PACKAGED, Records, read_records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.traits import TRAITS
from lorica.common.tasks import task_of

TEST_SHARE = 0.2
"""Share of units set aside for testing when the plan names no test data."""

_VALIDATION_SEED = 99


@dataclass(frozen=True)
class RunData:
    """What a plan's data section stands for."""

    train: Records
    test: Records
    judge: Records | None = None
    """The coordinator's validation data (data.judge), if it has any."""


def load_data(plan: RunPlan) -> RunData:
    """As :func:`_train_and_test`, with the file of data.judge."""
    found = _train_and_test(plan)
    return replace(found, judge=judge_data(plan)) if plan.data.judge else found


def judge_data(plan: RunPlan) -> Records | None:
    """The file of data.judge, which is read like test data; None where the plan names none.

    Raises:
        LoricaError: LOR-30x for data that are not what the plan says.
    """
    return _reader(plan)(plan.data.judge, test=True) if plan.data.judge else None


def _train_and_test(plan: RunPlan) -> RunData:
    """Read a plan's training and test data; without test data, set a fifth of the units aside.

    The split depends on the plan's seed and the units' names alone, so every process of a
    simulation makes the same one.

    A folder of images that is divided into train and test brings its own test data.

    Raises:
        LoricaError: LOR-30x for data that are not what the plan says; LOR-308 when test data
            must be set aside, but all records are one unit's.
    """
    column = plan.simulation.column if plan.simulation.partition == "by-column" else ""
    read = _reader(plan)
    train = read(plan.data.train, unit=plan.unit_column, group=column)
    if plan.data.test or plan.data.train.startswith(PACKAGED) or _divided(plan):
        source = plan.data.test or plan.data.train
        unit = "" if plan.data.test else plan.unit_column  # test files need not name units
        test = read(source, unit=unit, test=True)
        return RunData(*_merged(plan, train, test))
    (train,) = _merged(plan, train)
    if len(set(train.units)) < 2:
        raise LoricaError(
            Code.DATA_TOO_FEW_RECORDS,
            f"{plan.data.train} holds one record, or the records of one unit, and a unit is "
            "never divided: nothing can be set aside for testing.",
            mend="Name a file with test data in data.test, or give data of more units.",
        )
    return _split(train, plan.simulation.seed)


def _divided(plan: RunPlan) -> bool:
    """Whether the training data are a folder of images with a part for testing."""
    data = plan.data
    if data.table or not is_path(data.train) or kind_of(data.train, Path()) != "images":
        return False
    return bool(parts_of(local_path(data.train, Path())))


def test_data(plan: RunPlan) -> Records:
    """The file of data.test alone: what a coordinator tests with that has no training data.

    Raises:
        LoricaError: LOR-30x for data that are not what the plan says.
    """
    return _merged(plan, _reader(plan)(plan.data.test, test=True))[0]


def _reader(plan: RunPlan) -> Callable[..., Records]:
    """:func:`lorica.common.data.records.read_records` with what the plan says of its columns."""
    traits = TRAITS[plan.task.kind]
    return functools.partial(
        read_records,
        plan=plan.columns,
        lists=traits.lists,
        images=traits.images,
        table=plan.table.names,
        labels_are_names=traits.one_label_each,
    )


def _merged(plan: RunPlan, *data: Records) -> list[Records]:
    """The data with one spelling for labels, and for sites, that only look alike, if the plan
    wants them merged: the plan's own, else the most frequent in all of the data."""
    if plan.data.alike != "merge":
        return list(data)
    groups = one_spelling([], [part.groups for part in data])
    found = [replace(part, groups=[groups[name] for name in part.groups]) for part in data]
    if TRAITS[plan.task.kind].one_label_each:
        labels = one_spelling(plan.task.labels, [part.labels for part in data])
        found = [replace(part, labels=[labels[name] for name in part.labels]) for part in found]
    return found


def validation_data(plan: RunPlan) -> RunData:
    """As :func:`load_data`, but tested on a fifth of the units of the training data, whatever test
    data the plan names: for choosing settings. The split is the same for every seed."""
    return _split(load_data(plan).train, _VALIDATION_SEED)


def label_sources(plan: RunPlan, data: RunData) -> list[Records]:
    """The data that labels are taken from when the plan names none.

    Test data of a file of their own may not bring labels that the training data lack: such a
    label is likelier a misspelling than a class to learn.
    """
    own = plan.data.test or _divided(plan)
    return [data.train] if own else [data.train, data.test]


def with_labels(plan: RunPlan, *data: Records) -> RunPlan:
    """The plan with task.labels filled in from the data, if its task has labels and it names none.

    Raises:
        LoricaError: LOR-307 when there are too few labels.
    """
    return task_of(plan).with_labels(data)


def _split(records: Records, seed: int) -> RunData:
    units = sorted(set(records.units))
    random.Random(seed).shuffle(units)
    aside = set(units[: max(1, round(TEST_SHARE * len(units)))])
    rows = range(len(records))
    return RunData(
        records.take([row for row in rows if records.units[row] not in aside]),
        records.take([row for row in rows if records.units[row] in aside]),
    )
