"""De-duplication keeps neighbouring data sets neighbours; class maps are per record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.client.config.data import SiteData
from lorica.client.data.duplicates import normal_form, without_duplicates
from lorica.common.data.records import UNNAMED, Records, collect
from lorica.common.errors import Code

Row = tuple[str, str, str]

ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", " a", "a ", "A", "\uff41"]),
        st.sampled_from(["x", "y"]),
        st.sampled_from(["", "p", "q", "r"]),
    ),
    min_size=1,
    max_size=12,
)


def made(rows: list[Row]) -> Records:
    units = [unit or f"{UNNAMED}{number}" for number, (_, _, unit) in enumerate(rows)]
    return Records([t for t, _, _ in rows], [n for _, n, _ in rows], units, [""] * len(rows))


def kept(rows: list[Row], compare: str) -> Counter[Row]:
    """What stays, as training sees it: unnamed units are alike."""
    if not rows:
        return Counter()
    data = SiteData(source="x", duplicates="drop", compare=compare)  # type: ignore[arg-type]
    left = collect(without_duplicates([made(rows[:3]), made(rows[3:])], data, "x"), "x")
    units = ["" if unit.startswith(UNNAMED) else unit for unit in left.units]
    return Counter(zip(left.texts, left.labels, units, strict=True))


@settings(max_examples=300, deadline=None)
@given(rows=ROWS, compare=st.sampled_from(["exact", "normalised"]), data=st.data())
def test_without_one_unit_what_stays_differs_by_that_unit_alone(
    rows: list[Row], compare: str, data: st.DataObject
) -> None:
    """A named unit loses its own records and nothing comes back; an unnamed record at most one."""
    units = [unit or number for number, (_, _, unit) in enumerate(rows)]
    gone = data.draw(st.sampled_from(units))
    without = [row for row, unit in zip(rows, units, strict=True) if unit != gone]
    before, after = kept(rows, compare), kept(without, compare)
    assert not after - before  # nothing comes back
    lost = before - after
    if isinstance(gone, int):
        assert lost.total() <= 1
    else:
        assert all(unit == gone for _, _, unit in lost)
        assert lost.total() == sum(n for (_, _, unit), n in before.items() if unit == gone)


def test_across_units_keeping_one_would_change_many_units() -> None:
    """The rule that is not offered: this is what the property above would catch."""
    rows = [(f"text {i}", "x", "p") for i in range(5)] + [
        (f"text {i}", "x", f"q{i}") for i in range(5)
    ]

    def keep_first(rows: list[Row]) -> dict[str, str]:
        found: dict[str, str] = {}
        for text, _, unit in rows:
            found.setdefault(text, unit)
        return found

    before = set(keep_first(rows).items())
    after = set(keep_first([row for row in rows if row[2] != "p"]).items())
    assert len({unit for _, unit in after - before}) == 5
    assert kept(rows, "exact").total() == 10


def test_the_normal_form_is_one_for_white_space_and_width() -> None:
    assert normal_form("  a\u00a0b\n\tc ") == normal_form("\uff41 b c") == "a b c"


@pytest.fixture
def table(tmp_path: Path) -> str:
    (tmp_path / "d.csv").write_text("text,label,id\na,x,p\nb,y,p\na,x,p\na ,x,q\na,z,p\n")
    return "d.csv"


def test_duplicates_are_kept_dropped_or_refused_as_the_site_says(
    table: str, read: Callable[..., Any], refused: Callable[..., str]
) -> None:
    assert len(read(source=table, unit="id")) == 5
    dropped = read(source=table, unit="id", duplicates="drop")
    assert dropped.texts == ["a", "b", "a ", "a"]
    assert read(source=table, duplicates="drop", compare="normalised").texts == ["a", "b", "a"]
    assert "record 3" in refused(Code.DATA_DUPLICATES, source=table, unit="id", duplicates="refuse")


def test_classes_are_renamed_and_unmapped_ones_refused_or_dropped(
    table: str, read: Callable[..., Any], refused: Callable[..., str]
) -> None:
    classes = {"x": "heart", "y": "skin"}
    detail = refused(Code.DATA_CLASSES, source=table, classes=classes)
    assert "'z'" in detail and "record 5" in detail
    left = read(source=table, classes=classes, unmapped="drop")
    assert left.labels == ["heart", "skin", "heart", "heart"]
    assert read(source=table, classes=classes | {"z": "z"}).labels[-1] == "z"
    assert len(read(source=table, classes={"q": "x", "r": "y", "s": "z"})) == 5
