"""One value has one form, whatever the format wrote; values that differ stay apart."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorica.common.data.names.normal import alike_key, id_form, label_form, number_form, time_form
from lorica.common.data.records import Records, read_records
from lorica.common.plan.subject import DataPlan

PLAN = DataPlan(unit="patient")


def read(path: Path) -> Records:
    return read_records(str(path), PLAN, unit="patient", group="site")


def as_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".jsonl")
    lines = [json.dumps(row, default=lambda value: float(value)) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = path.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def rows_of(values: list[Any]) -> list[dict[str, Any]]:
    return [
        {"text": f"note {row}", "label": value, "patient": value, "site": value}
        for row, value in enumerate(values)
    ]


@pytest.mark.parametrize("write", [as_csv, as_jsonl, as_parquet])
@pytest.mark.parametrize(
    "values",
    [[1000, 7], [1000.0, 7.0], [Decimal("1000.0"), Decimal("7.0")]],
    ids=["integers", "floats", "decimals"],
)
def test_whole_numbers_are_one_value_in_every_format(
    write: Callable[..., Path], values: list[Any], tmp_path: Path
) -> None:
    found = read(write(tmp_path / "d", rows_of(values)))
    assert (found.units, found.labels, found.groups) == (["1000", "7"],) * 3


@pytest.mark.parametrize("write", [as_csv, as_parquet])
@pytest.mark.parametrize(
    ("values", "forms"),
    [
        ([date(2024, 1, 5), date(2023, 12, 31)], ["2024-01-05", "2023-12-31"]),
        ([datetime(2024, 1, 5), datetime(2023, 12, 31)], ["2024-01-05", "2023-12-31"]),
        ([datetime(2024, 1, 5, 9, 30)], ["2024-01-05T09:30:00"]),
        ([True, False], ["true", "false"]),
        ([0.5, 0.25], ["0.5", "0.25"]),
    ],
    ids=["dates", "midnights", "times", "truth", "fractions"],
)
def test_dates_times_and_truth_values_are_one_value_in_every_format(
    write: Callable[..., Path], values: list[Any], forms: list[str], tmp_path: Path
) -> None:
    found = read(write(tmp_path / "d", rows_of(values)))
    assert (found.units, found.labels, found.groups) == (forms,) * 3


def test_a_patient_whose_id_is_whole_in_half_of_the_lines_is_one_unit(tmp_path: Path) -> None:
    ids = [1000 + row % 20 for row in range(200)]
    lines = [
        {"text": f"t{row}", "label": "ab"[row % 2], "patient": i if row < 100 else float(i)}
        for row, i in enumerate(ids)
    ]
    found = read_records(str(as_jsonl(tmp_path / "d", lines)), PLAN, unit="patient")
    assert len(set(found.units)) == 20


@pytest.mark.parametrize(
    "spellings",
    [
        ["12", "12.0", "12.00", " 12", "12\u00a0", "\u200b12", "\ufeff12"],
        ["Zoe\u0308", "Zo\u00eb", "Zo\u00eb\u200d"],
        ["2024-01-05T00:00:00Z", "2024-01-05 01:00:00+01:00", "2024-01-05 00:00:00.000+0000"],
    ],
)
def test_an_id_written_in_several_ways_is_one(spellings: list[str], tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "patient": s} for i, s in enumerate(spellings)]
    found = read_records(str(as_csv(tmp_path / "d", rows)), PLAN, unit="patient")
    assert len(set(found.units)) == 1


@pytest.mark.parametrize(
    "different",
    [["007", "7", "07"], ["a", "A"], ["1E50", "1E51"], ["1.5", "15"], ["1-2", "12"], ["-1", "1"]],
)
def test_ids_that_may_be_two_stay_two(different: list[str]) -> None:
    assert len(set(map(id_form, different))) == len(different)


@pytest.mark.parametrize(
    "code", ["1E50", "007", "250.00", "E11.0", "V70.0", "1_000", "1,000", "1."]
)
def test_codes_that_look_like_numbers_stay_as_they_are_as_labels(code: str) -> None:
    assert label_form(code) == code


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e38, max_value=1e38))
def test_a_numbers_form_is_the_same_number_and_its_own_form(value: float) -> None:
    form = number_form(repr(value))
    assert float(form) == value
    assert "e" not in form or abs(value) < 1e-30
    assert number_form(form) == form


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3), st.integers(0, 4))
def test_zeros_at_the_end_change_no_form(value: Decimal, zeros: int) -> None:
    assert number_form(f"{value:f}") == number_form(f"{value:f}" + "0" * zeros)


@given(st.datetimes(timezones=st.timezones()))
def test_the_form_of_a_time_does_not_hang_on_its_zone(moment: datetime) -> None:
    from datetime import UTC

    offset = moment.utcoffset()
    if offset is None or offset.seconds % 60 or not 1 < moment.year < 9999:
        return  # zones of old times have offsets of odd seconds
    assert time_form(moment.isoformat()) == time_form(moment.astimezone(UTC).isoformat(" "))


@given(st.text())
def test_forms_are_their_own_forms(text: str) -> None:
    for form in (id_form, label_form, alike_key):
        assert form(form(text)) == form(text), form
