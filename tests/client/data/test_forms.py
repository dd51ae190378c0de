"""A database's numbers, decimals, dates and truth values have the form that files' have."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from lorica.client.data.sql import _cell

Read = Callable[..., Any]


def test_whole_numbers_of_a_database_are_one_value(tmp_path: Path, read: Read) -> None:
    with sqlite3.connect(tmp_path / "d.db") as connection:
        connection.execute("CREATE TABLE d (text TEXT, label REAL, patient)")
        for row, patient in enumerate([1000, 1000.0, "1000", "1000.0", "1000.00", " 1000"]):
            connection.execute("INSERT INTO d VALUES (?, ?, ?)", (f"t{row}", row % 2, patient))
    found = read(source="sqlite:///d.db", query="SELECT * FROM d", unit="patient")
    assert set(found.units) == {"1000"}
    assert found.labels == ["0", "1"] * 3


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (Decimal("1000.00"), "1000"),
        (Decimal("1E+3"), "1000"),
        (1e15, "1000000000000000"),
        (1e16, "1e+16"),  # a fraction that may stand for another number: an id is refused so
        (0.5, "0.5"),
        (True, "true"),
        (None, ""),
        (date(2024, 1, 5), "2024-01-05"),
        (datetime(2024, 1, 5), "2024-01-05"),
        (datetime.fromisoformat("2024-01-05T01:00:00+01:00"), "2024-01-05T00:00:00Z"),
    ],
)
def test_what_drivers_give_has_the_form_of_files(value: object, form: str) -> None:
    assert _cell(value, "column") == form
