"""An ε in words is never less than the ε, and what is left never more."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lorica.client
from lorica.common.display.wording import energy_text, epsilon_text, left_text

_NUMBER = re.compile(r"-?[0-9.]+(E[+-][0-9]+)?", re.IGNORECASE)


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (7.991, 2, "8"),
        (0.1201, 2, "0.13"),
        (3.0, 2, "3"),
        (0.1, 2, "0.1"),
        (1.9430001, 3, "1.944"),
        (2e-9, 3, "0.001"),
        (0.0, 3, "0"),
        (math.inf, 2, "∞"),
        (None, 2, "–"),
        (math.nan, 2, "–"),
    ],
)
def test_an_epsilon_is_rounded_up(value: float | None, digits: int, shown: str) -> None:
    assert epsilon_text(value, digits) == shown


@given(st.floats(0, 1e300, allow_subnormal=False), st.integers(0, 6))
def test_what_is_shown_is_no_less_than_what_was_spent_and_no_more_than_what_is_left(
    value: float, digits: int
) -> None:
    spent, left = epsilon_text(value, digits), left_text(value, digits)
    assert _NUMBER.fullmatch(spent) and _NUMBER.fullmatch(left)
    exact = Fraction(repr(value))
    assert Fraction(left) <= exact <= Fraction(spent)
    assert Fraction(spent) - Fraction(left) <= max(Fraction(10) ** -digits, exact / 500)


def test_what_is_overspent_is_shown_as_such() -> None:
    assert left_text(-0.0001, 3) == "-0.001"


def test_no_view_of_a_site_or_a_run_rounds_an_epsilon_by_itself() -> None:
    """Wherever a figure named after ε is formatted with a number of decimals, it is to nearest."""
    root = Path(str(lorica.client.__file__)).resolve().parents[1]
    found = [
        f"{path}:{number}"
        for side in ("client", "common", "simulations", "server")
        for path in (root / side).rglob("*.py")
        if "audit" not in path.parts  # measured lower bounds, which round to nearest
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"(epsilon|spent)\w*:\.\df", line)
    ]
    assert found == []


def test_energy_is_told_in_watt_hours() -> None:
    assert [energy_text(joules) for joules in (None, 0.0, 3600.0, 4444.0, 3.6e6, 9e6)] == [
        "–",
        "0 Wh",
        "1 Wh",
        "1.23 Wh",
        "1.0 kWh",
        "2.5 kWh",
    ]
