"""Which sites a round asks: as many as the plan says, the same again, in proportion."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorica.common.plan.course import RoundsPlan
from lorica.server.rounds.selection import select

SITES = [(f"site-{i:02d}", 100) for i in range(10)]


@given(
    st.integers(1, 40),
    st.floats(0.01, 1),
    st.integers(1, 10),
    st.floats(0, 3),
    st.floats(0, 1),
)
def test_counts_are_in_their_bounds(
    sites: int, fraction: float, minimum: int, over: float, quorum: float
) -> None:
    rounds = RoundsPlan(
        fraction=fraction, minimum_sites=minimum, over_provision=over, quorum=quorum
    )
    found = select(rounds, "run", 1, [(str(i), 1) for i in range(sites)])
    assert len(set(found.asked)) == len(found.asked)
    assert found.wanted <= len(found.asked) <= sites
    assert found.wanted >= min(sites, minimum, 1)
    assert found.sufficient >= minimum


@pytest.mark.parametrize(
    ("plan", "wanted", "asked", "sufficient"),
    [
        ({}, 10, 10, 1),
        ({"fraction": 0.3}, 3, 3, 1),
        ({"fraction": 0.3, "over_provision": 0.5}, 3, 5, 1),
        ({"fraction": 0.3, "minimum_sites": 4}, 4, 4, 4),
        ({"quorum": 0.8}, 10, 10, 8),
        ({"fraction": 0.5, "over_provision": 9}, 5, 10, 1),
    ],
)
def test_counts_follow_the_plan(
    plan: dict[str, float], wanted: int, asked: int, sufficient: int
) -> None:
    found = select(RoundsPlan.model_validate(plan), "run", 3, SITES)
    assert (found.wanted, len(found.asked), found.sufficient) == (wanted, asked, sufficient)


def test_the_same_run_and_round_draw_the_same_sites_in_whatever_order_they_are_ready() -> None:
    rounds = RoundsPlan(fraction=0.4)
    turned = SITES[::-1]
    for round in range(1, 20):
        first = {SITES[i][0] for i in select(rounds, "run", round, SITES).asked}
        again = {turned[i][0] for i in select(rounds, "run", round, turned).asked}
        assert first == again
    drawn = {tuple(select(rounds, "run", round, SITES).asked) for round in range(1, 20)}
    assert len(drawn) > 10
    assert select(rounds, "another", 1, SITES) != select(rounds, "run", 1, SITES)


def test_weighted_selection_draws_in_proportion_and_needs_all_weights() -> None:
    rounds = RoundsPlan(fraction=0.1, selection="weighted")
    heavy = [("heavy", 900), *((f"light-{i}", 100) for i in range(9))]
    counts = collections.Counter(
        heavy[select(rounds, "run", round, heavy).asked[0]][0] for round in range(1, 2001)
    )
    assert counts["heavy"] / 2000 == pytest.approx(0.5, abs=0.05)  # 900 of 1800
    silent = [("heavy", 0), *heavy[1:]]
    counts = collections.Counter(
        silent[select(rounds, "run", round, silent).asked[0]][0] for round in range(1, 2001)
    )
    assert counts["heavy"] / 2000 == pytest.approx(0.1, abs=0.03)
