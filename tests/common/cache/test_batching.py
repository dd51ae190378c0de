"""Canonical batches: every unit once and whole, in a shape that it decides by itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.cache import batching
from lorica.common.cache.batching import (
    BATCH_OVERHEAD,
    TOKEN_BUDGET,
    cut,
    record_batches,
    row_counts,
    unit_batches,
)
from lorica.common.tasks.shapes import canonical_lengths, padded, shapes_of

units_of_sizes = st.lists(
    st.lists(st.integers(1, 600), min_size=1, max_size=5), min_size=1, max_size=40
)


def drawn_from(units: list[list[int]]) -> tuple[list[np.ndarray], np.ndarray]:
    """Rows of every unit, and sizes (N, 1)."""
    ends = np.cumsum([len(unit) for unit in units])
    rows = [np.arange(end - len(unit), end) for unit, end in zip(units, ends, strict=True)]
    return rows, np.array([[size] for unit in units for size in unit], dtype=np.int64)


@settings(max_examples=200, deadline=None)
@given(units=units_of_sizes, budget=st.integers(1, 4000))
def test_every_unit_comes_once_and_whole_in_one_shape(units: list[list[int]], budget: int) -> None:
    drawn, sizes = drawn_from(units)
    seen: list[tuple[int, ...]] = []
    begun: list[int] = []
    for batch in unit_batches(drawn, sizes, 600, budget):
        real = batch.rows[: batch.real]
        assert (batch.owner[: batch.real] >= 0).all() and (batch.owner[batch.real :] == -1).all()
        kinds = set()
        for unit in range(batch.owner.max() + 1):
            rows = real[batch.owner[: batch.real] == unit]
            turns = batch.turn[: batch.real][batch.owner[: batch.real] == unit]
            assert turns.tolist() == list(range(len(begun), len(begun) + len(rows)))
            begun = begun + rows.tolist()
            if not batch.more:
                seen.append(tuple(begun))
                kinds.add(tuple(shapes_of(sizes[begun], np.array([0]), 600)[0]))
                begun = []
        assert len(kinds) <= 1
        if kinds:
            assert len(batch.rows) in row_counts(next(iter(kinds))[0], budget)
    assert sorted(seen) == sorted(tuple(rows.tolist()) for rows in drawn)


@settings(max_examples=200, deadline=None)
@given(units=units_of_sizes, others=units_of_sizes)
def test_a_units_shape_is_the_same_whoever_is_drawn_with_it(
    units: list[list[int]], others: list[list[int]]
) -> None:
    """What a batch is padded to, for every unit, alone and with others."""

    def widths(units: list[list[int]]) -> dict[int, tuple[int, bool]]:
        drawn, sizes = drawn_from(units)
        found = {}
        for batch in unit_batches(drawn, sizes, 600):
            lengths = sizes[batch.rows, 0]
            width = int(padded(lengths.max(), 600))
            for row in batch.rows[: batch.real]:
                found[int(row)] = (width, bool((lengths == width).all()))
        return found

    together, count = widths(units + others), sum(map(len, units))
    alone = [widths([unit]) for unit in units]
    place = 0
    for unit, found in zip(units, alone, strict=True):
        if len(unit) <= 1 or TOKEN_BUDGET // max(width for width, _ in found.values()) >= len(unit):
            for at in range(len(unit)):
                assert together[place + at] == found[at]
        place += len(unit)
    assert place == count


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 128), max_size=60), data=st.data())
def test_record_batches_say_where_each_row_was_asked_for(
    sizes: list[int], data: st.DataObject
) -> None:
    """Rows may repeat and stand in any order."""
    given_sizes = np.array(sizes, dtype=np.int64).reshape(-1, 1)
    chosen = data.draw(st.lists(st.integers(0, len(sizes) - 1))) if sizes else []
    rows = np.array(chosen, dtype=np.int64)
    found = np.full(len(rows), -1)
    for batch, places in record_batches(rows, given_sizes, 128):
        assert (found[places] == -1).all()
        found[places] = batch[: len(places)]
    assert found.tolist() == chosen


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 128), min_size=1, max_size=90))
def test_record_batches_are_those_of_units_of_one_record_each(sizes: list[int]) -> None:
    given_sizes = np.array(sizes, dtype=np.int64).reshape(-1, 1)
    rows = np.arange(len(sizes))[::-1].copy()
    alone = list(np.arange(len(rows))[:, None])
    expected = [
        (rows[batch.rows].tolist(), batch.rows[: batch.real].tolist())
        for batch in unit_batches(alone, given_sizes[rows], 128)
    ]
    found = record_batches(rows, given_sizes, 128)
    assert [(batch.tolist(), places.tolist()) for batch, places in found] == expected


@settings(max_examples=300, deadline=None)
@given(count=st.integers(1, 300), length=st.sampled_from(canonical_lengths(512)))
def test_rows_are_cut_at_the_least_cost(count: int, length: int) -> None:
    """Against all ways of at most five batches, where so many hold the rows."""
    counts = row_counts(length)
    found = cut(count, length)
    assert sum(found) >= count and set(found) <= set(counts)
    cost = sum(found) * length + len(found) * BATCH_OVERHEAD
    rest = count % counts[-1]
    ways = [
        way
        for number in range(1, 5)
        for way in itertools.combinations_with_replacement(counts, number)
        if sum(way) >= rest
    ]
    whole = (count // counts[-1]) * (counts[-1] * length + BATCH_OVERHEAD)
    least = min((sum(way) * length + len(way) * BATCH_OVERHEAD for way in ways), default=0)
    assert cost <= whole + (least if rest else 0) + BATCH_OVERHEAD


def test_lengths_are_padded_by_little() -> None:
    for size in range(1, 2000):
        width = int(padded(size))
        assert size <= width <= max(8, size * 1.25 + 8) and width % 8 == 0
    assert padded(np.array([1, 8, 9, 65, 500])).tolist() == [8, 8, 16, 80, 512]
    assert padded(61, 62) == 62
    assert canonical_lengths(30) == [8, 16, 24, 30]


def test_a_unit_that_fills_its_shape_never_shares_a_batch_with_one_that_does_not() -> None:
    """Models leave out the mask where all of a batch is full."""
    batches = list(unit_batches([np.array([0]), np.array([1])], np.array([[16], [15]]), 64))
    assert len(batches) == 2


def test_long_texts_are_computed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching._Machine, "least", batching.LEAST_ROWS)
    assert row_counts(TOKEN_BUDGET // 2) == (1,)
    assert row_counts(8) == (4, 8, 16, 32, 64, 128, 256)


def test_fewer_row_counts_where_a_machine_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching._Machine, "least", 4)
    try:
        batching.use_least_rows(16)
        assert row_counts(32) == (16, 32, 64)
        assert cut(3, 32) == (16,)
        batching.use_least_rows(0)
        assert row_counts(8) == (1,)
        assert cut(3, 8) == (1, 1, 1)
    finally:
        batching.use_least_rows(4)
    assert row_counts(32)[0] == 4


def test_no_units_make_no_batches() -> None:
    assert list(unit_batches([], np.zeros((0, 1), dtype=np.int64), 8)) == []
