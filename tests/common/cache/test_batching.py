"""Micro-batches: every row once, within the budget, longest first."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.cache.batching import (
    BATCH_OVERHEAD,
    TOKEN_BUDGET,
    cuts,
    equal_batches,
    micro_batches,
)

lengths = st.lists(st.integers(1, 600), min_size=1, max_size=80)


@settings(max_examples=200, deadline=None)
@given(lengths=lengths, budget=st.integers(1, 3000), data=st.data())
def test_every_row_comes_once_and_the_budget_holds(
    lengths: list[int], budget: int, data: st.DataObject
) -> None:
    sizes = np.array(lengths)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), unique=True))
    rows = np.array(chosen, dtype=np.int64)
    batches = list(micro_batches(rows, sizes, budget))
    assert sorted(row for batch in batches for row in batch) == sorted(chosen)
    for batch in batches:
        assert len(batch) >= 1
        assert len(batch) == 1 or len(batch) * sizes[batch].max() <= budget


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, budget=st.integers(1, 3000))
def test_equal_batches_bring_every_row_once_in_one_length_within_the_budget(
    lengths: list[int], budget: int
) -> None:
    sizes = np.array(lengths)
    batches = list(equal_batches(np.arange(len(sizes)), sizes, budget))
    assert sorted(row for batch in batches for row in batch) == list(range(len(sizes)))
    for batch in batches:
        assert len(set(sizes[batch])) == 1
        assert len(batch) == 1 or len(batch) * sizes[batch].max() <= budget


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, budget=st.integers(1, 3000))
def test_lengths_never_rise_within_a_batch_or_across_batches(
    lengths: list[int], budget: int
) -> None:
    sizes = np.array(lengths)
    in_order = np.concatenate(list(micro_batches(np.arange(len(sizes)), sizes, budget)))
    assert (np.diff(sizes[in_order]) <= 0).all()


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, budget=st.integers(1, 3000))
def test_no_batch_could_take_the_next_row(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths)
    batches = list(micro_batches(np.arange(len(sizes)), sizes, budget))
    for batch in batches[:-1]:
        assert (len(batch) + 1) * sizes[batch].max() > budget


def test_rows_that_are_drawn_twice_come_twice() -> None:
    batches = list(micro_batches(np.array([1, 1, 0]), np.array([3, 5])))
    assert sorted(np.concatenate(batches)) == [0, 1, 1]


def test_no_rows_make_no_batches() -> None:
    assert list(micro_batches(np.array([], dtype=np.int64), np.array([3, 4]))) == []
    assert list(equal_batches(np.array([], dtype=np.int64), np.array([3, 4]))) == []


def test_equal_lengths_fill_the_default_budget() -> None:
    batches = list(micro_batches(np.arange(100), np.full(100, 64)))
    assert [len(batch) for batch in batches[:-1]] == [TOKEN_BUDGET // 64] * 3


items = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 4)), min_size=1, max_size=7)


def cost_of(batches: list[tuple[int, int]], lengths: np.ndarray, sizes: np.ndarray) -> int:
    return sum(int(sizes[i:j].sum() * lengths[i]) + BATCH_OVERHEAD for i, j in batches)


def ways_to_cut(count: int) -> list[list[tuple[int, int]]]:
    found = []
    for chosen in itertools.product([False, True], repeat=count - 1):
        marks = [0, *(place + 1 for place, cut in enumerate(chosen) if cut), count]
        found.append(list(itertools.pairwise(marks)))
    return found


@settings(max_examples=200, deadline=None)
@given(items=items, budget=st.integers(1, 2000))
def test_cuts_cost_no_more_than_any_other_way_within_the_budget(
    items: list[tuple[int, int]], budget: int
) -> None:
    """Against all 2^(n - 1) ways."""
    pairs = sorted(items, reverse=True)
    lengths, sizes = (np.array(column) for column in zip(*pairs, strict=True))

    def fits(batches: list[tuple[int, int]]) -> bool:
        return all(j == i + 1 or sizes[i:j].sum() * lengths[i] <= budget for i, j in batches)

    found = cuts(lengths, sizes, budget)
    ways = [way for way in ways_to_cut(len(pairs)) if fits(way)]
    assert found in ways
    assert cost_of(found, lengths, sizes) == min(cost_of(way, lengths, sizes) for way in ways)


def test_short_texts_are_not_padded_to_a_long_one() -> None:
    lengths = np.array([100, *[10] * 20])
    assert cuts(lengths, np.ones_like(lengths), TOKEN_BUDGET) == [(0, 1), (1, 21)]
