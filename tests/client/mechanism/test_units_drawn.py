"""Rows drawn for a release, where units are records and where they are not."""

from __future__ import annotations

import pytest

from lorica.client.mechanism.noise import SeededNoise
from lorica.client.mechanism.units import Units, joined


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "units", [Units.of_records(50), Units([f"{n // 3}" for n in range(50)], most=2)]
)
def test_rows_are_those_of_the_units_that_the_same_stream_draws(units: Units, rate: float) -> None:
    rows, owner = joined(units.draw(SeededNoise(1, "draw"), rate))
    found, owners = units.draw_rows(SeededNoise(1, "draw"), rate)
    assert found.tolist() == rows.tolist()
    assert owners.tolist() == owner.tolist()
    assert (found.dtype, owners.dtype) == (rows.dtype, owner.dtype)
