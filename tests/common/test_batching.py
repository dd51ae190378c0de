"""Micro-batches: every row once, within the budget, longest first."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.batching import TOKEN_BUDGET, micro_batches

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


def test_equal_lengths_fill_the_default_budget() -> None:
    batches = list(micro_batches(np.arange(100), np.full(100, 64)))
    assert [len(batch) for batch in batches[:-1]] == [TOKEN_BUDGET // 64] * 3
