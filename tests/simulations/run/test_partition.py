"""Partitions: every row at one site, units whole, deterministic, as skewed as asked."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.course import SimulationPlan
from lorica.simulations.run.partition import partition

LABELS = ["a", "b", "c", "d"]


def make_records(
    count: int, *, units: list[str] | None = None, groups: list[str] | None = None, seed: int = 0
) -> Records:
    generator = np.random.default_rng(seed)
    return Records(
        [f"text {row}" for row in range(count)],
        [LABELS[i] for i in generator.integers(0, len(LABELS), count)],
        units or [str(row) for row in range(count)],
        groups or [""] * count,
    )


def plan(kind: str = "iid", **fields: object) -> SimulationPlan:
    column = "where" if kind == "by-column" else ""
    return SimulationPlan.model_validate({"partition": kind, "column": column, **fields})


@st.composite
def owned(draw: st.DrawFn) -> Records:
    """Up to 120 records of up to 40 units, in any order."""
    owners = draw(st.lists(st.integers(0, 39), min_size=1, max_size=120))
    return make_records(
        len(owners), units=[f"u{owner}" for owner in owners], seed=draw(st.integers(0, 99))
    )


@settings(max_examples=150, deadline=None)
@given(
    records=owned(),
    kind=st.sampled_from(["iid", "dirichlet"]),
    sites=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_row_is_at_one_site_and_no_unit_is_split(
    records: Records, kind: str, sites: int, seed: int
) -> None:
    try:
        parts = partition(records, plan(kind, sites=sites, seed=seed, alpha=1.0))
    except LoricaError as error:
        assert error.code is Code.DATA_PARTITION
        assume(False)
    assert len(parts) == sites
    assert sorted(row for rows in parts.values() for row in rows) == list(range(len(records)))
    assert all(rows == sorted(rows) and rows for rows in parts.values())
    homes: dict[str, set[str]] = {}
    for site, rows in parts.items():
        for row in rows:
            homes.setdefault(records.units[row], set()).add(site)
    assert all(len(found) == 1 for found in homes.values())


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_the_seed_alone_decides(kind: str) -> None:
    records = make_records(300)
    first = partition(records, plan(kind, seed=1))
    assert partition(records, plan(kind, seed=1)) == first
    assert partition(make_records(300), plan(kind, seed=1)) == first
    assert partition(records, plan(kind, seed=2)) != first


@pytest.mark.parametrize("sites", [1, 3, 7, 10])
def test_iid_sites_have_equal_numbers_of_units(sites: int) -> None:
    parts = partition(make_records(100), plan(sites=sites))
    sizes = [len(rows) for rows in parts.values()]
    assert max(sizes) - min(sizes) <= 1


def test_iid_sites_are_no_runs_of_the_file() -> None:
    """A file sorted by label would otherwise give each site its own label."""
    for rows in partition(make_records(400), plan(sites=4)).values():
        assert max(rows) - min(rows) > 200


def skew(records: Records, parts: dict[str, list[int]]) -> float:
    """Mean total variation between a site's label shares and the whole data's."""

    def shares(rows: list[int]) -> np.ndarray:
        counts = Counter(records.labels[row] for row in rows)
        return np.array([counts[label] for label in LABELS]) / len(rows)

    whole = shares(list(range(len(records))))
    return float(np.mean([abs(shares(rows) - whole).sum() / 2 for rows in parts.values()]))


def test_a_smaller_alpha_is_more_skewed() -> None:
    """Mean over 10 seeds; at alpha 1000 as even as an iid division, to a few records."""
    records = make_records(2000)

    def mean(kind: str, alpha: float) -> float:
        plans = [plan(kind, sites=5, alpha=alpha, seed=seed) for seed in range(10)]
        return float(np.mean([skew(records, partition(records, one)) for one in plans]))

    skews = [mean("dirichlet", alpha) for alpha in (0.2, 1.0, 10.0, 1000.0)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 3 * skews[2]
    assert skews[3] < mean("iid", 1.0) + 0.02


@pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0])
def test_a_dirichlet_division_leaves_no_site_nearly_empty(alpha: float) -> None:
    """With many more records than sites, none has less than half of an equal share."""
    for seed in range(10):
        parts = partition(make_records(1000), plan("dirichlet", sites=5, alpha=alpha, seed=seed))
        assert min(map(len, parts.values())) >= 100


@pytest.mark.parametrize(("sites", "last"), [(2, "site-01"), (100, "site-99"), (101, "site-100")])
def test_names_sort_as_numbers_do(sites: int, last: str) -> None:
    names = list(partition(make_records(150), plan(sites=sites)))
    assert names == sorted(names)
    assert names[-1] == last


def test_a_column_gives_sites_their_names_and_rows() -> None:
    groups = ["north", "süd", "north", " west", "süd"]
    parts = partition(make_records(5, groups=groups), plan("by-column", sites=99))
    assert parts == {" west": [3], "north": [0, 2], "süd": [1, 4]}
    assert list(parts) == sorted(parts)


def refused(records: Records, how: SimulationPlan) -> str:
    with pytest.raises(LoricaError) as caught:
        partition(records, how)
    assert caught.value.code is Code.DATA_PARTITION
    return caught.value.detail


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
@pytest.mark.parametrize(("count", "sites"), [(3, 4), (0, 1)])
def test_more_sites_than_units_are_refused(kind: str, count: int, sites: int) -> None:
    detail = refused(make_records(count), plan(kind, sites=sites))
    assert str(count) in detail
    assert str(sites) in detail


def test_units_count_not_records() -> None:
    records = make_records(50, units=["one", "two"] * 25)
    assert "2 units" in refused(records, plan(sites=3))
    assert len(partition(records, plan(sites=2))) == 2


def test_a_dirichlet_division_that_leaves_a_site_empty_is_refused() -> None:
    """At alpha 0.001 the one label there is goes to one site whole, and nine stay empty."""
    records = make_records(40)
    one_label = Records(records.texts, ["a"] * 40, records.units, records.groups)
    assert "alpha=0.001" in refused(one_label, plan("dirichlet", sites=10, alpha=0.001))


def test_a_unit_at_two_sites_is_refused_by_name() -> None:
    records = make_records(4, units=["p1", "p2", "p1", "p3"], groups=["n", "n", "s", "s"])
    detail = refused(records, plan("by-column"))
    assert "'p1'" in detail
    assert "'n'" in detail
    assert "'s'" in detail


@pytest.mark.parametrize("empty", ["", "  "])
def test_a_record_without_a_site_is_refused_by_number(empty: str) -> None:
    records = make_records(3, groups=["n", empty, "s"])
    assert "Record 2" in refused(records, plan("by-column"))
