"""Canonical batches: the only shapes that a model ever computes records in.

Formal guarantee:
    *What is computed of a unit depends on that unit alone, to the bit.* Which matrix kernel runs,
    how it divides its work and in which order it adds follow from the shapes of its arguments and
    from nothing else: kernels do not look at values. Here every call has one of a finite set of
    shapes, which can be, and are, tried out:

    1. All records of a batch have one *shape* (:mod:`lorica.common.tasks.shapes`), a function of
       the unit alone: the canonical length of its longest record, and whether all of its records
       fill it.
    2. A batch has one of the *row counts* of that shape (:func:`row_counts`). Units never share
       a batch with a part of another; rows that are left over repeat a row and count as nothing.
    3. So what may still depend on others is in which row of which row count a record stands.
       :func:`lorica.client.mechanism.exactness.require_exact` has the real model compute one
       record in every row of every row count of every shape of the plan, with different
       neighbours, and compares all bits, forward and backward, before anything is charged. What
       does not agree is not used: more rows at least, fewer threads, at last one record alone; and
       if that does not agree with itself, nothing is served.

    The proof of 3 is by trial: that kernels do not look at values is true of the libraries that
    Lorica runs on (oneMKL, oneDNN, ATen), and is not checked beyond the records tried.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lorica.common.tasks.shapes import shapes_of

TOKEN_BUDGET = 2048
"""Tokens (padding included) of the largest batch; bounds memory, and keeps it in cache."""

BATCH_OVERHEAD = 96
"""What one more batch costs, in tokens that take as long: a forward and backward pass of a
layer of the embedded backbone takes about 4 ms beside 0.04 ms a token on two CPU cores."""

LEAST_ROWS = 4
"""Of a batch of texts that are not long: matrix kernels treat fewer rows of a product otherwise."""


class _Machine:
    """What the trial of shapes has found for this process."""

    least = LEAST_ROWS


def least_rows() -> int:
    """The fewest rows of a batch where more than one is used; 0 when each record is alone."""
    return _Machine.least


def use_least_rows(count: int) -> None:
    """Set :func:`least_rows` for this process: what the trial found."""
    _Machine.least = count
    row_counts.cache_clear()
    cut.cache_clear()


@functools.lru_cache(maxsize=1024)
def row_counts(length: int, budget: int = TOKEN_BUDGET) -> tuple[int, ...]:
    """The row counts of batches of texts of a canonical length, rising: powers of two within the
    budget; 1 alone for texts of which fewer than :func:`least_rows` fit it."""
    most = budget // max(1, length)
    least = least_rows()
    if not least or most < least:
        return (1,)
    return tuple(1 << power for power in range(least.bit_length() - 1, most.bit_length()))


@functools.lru_cache(maxsize=65536)
def cut(count: int, length: int, budget: int = TOKEN_BUDGET) -> tuple[int, ...]:
    """Row counts for so many rows of a length, which cost least together: each batch as many
    tokens as it has, and ``BATCH_OVERHEAD``. Falling; their sum is at least ``count``."""
    counts = row_counts(length, budget)
    whole, rest = divmod(count, counts[-1])
    return (counts[-1],) * whole + _cut_rest(rest, length, counts)


@functools.lru_cache(maxsize=65536)
def _cut_rest(count: int, length: int, counts: tuple[int, ...]) -> tuple[int, ...]:
    if not count:
        return ()
    whole = next(rows for rows in counts if rows >= count)
    ways: list[tuple[int, ...]] = [(whole,)]
    if whole > counts[0]:
        below = whole // 2
        ways.append((below, *_cut_rest(count - below, length, counts)))
    return min(ways, key=lambda way: sum(way) * length + len(way) * BATCH_OVERHEAD)


@dataclass(frozen=True)
class Batch:
    """Rows that are computed together."""

    rows: np.ndarray
    """int64, shape (R,); what is left over repeats the first."""
    owner: np.ndarray
    """Number within the batch of every row's unit, from 0 without gaps, shape (R,); -1 for what is
    left over."""
    turn: np.ndarray
    """Which of its unit's rows it is, from 0, shape (R,)."""
    more: bool = False
    """Whether the batch's only unit goes on in the next batch."""

    @property
    def real(self) -> int:
        """How many rows count; they come first."""
        return int((self.owner >= 0).sum())


def unit_batches(
    drawn: Sequence[np.ndarray], sizes: np.ndarray, limit: int, budget: int = TOKEN_BUDGET
) -> Iterator[Batch]:
    """Divide units into canonical batches; each unit's rows stay together, in their order.

    Args:
        drawn: rows of every unit, at least one each.
        sizes: of all records, shape (N, d), as of :class:`~lorica.common.tasks.inputs.Inputs`.
        limit: the records' largest canonical length.
        budget: tokens of the largest batch. A unit that is larger has several, to itself.

    Yields:
        Batches, the longest texts first (so that memory peaks at once, not late).
    """
    if not len(drawn):
        return
    counts = np.array([len(rows) for rows in drawn], dtype=np.int64)
    shapes = shapes_of(sizes[np.concatenate(drawn)], np.cumsum(counts) - counts, limit)
    kinds, kind_of = np.unique(shapes, axis=0, return_inverse=True)
    for kind in reversed(range(len(kinds))):
        members = np.flatnonzero(kind_of.reshape(-1) == kind)
        yield from _of_one_shape(
            [drawn[int(unit)] for unit in members], int(kinds[kind, 0]), budget
        )


def record_batches(
    rows: np.ndarray, sizes: np.ndarray, limit: int, budget: int = TOKEN_BUDGET
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Canonical batches of records, each by itself.

    Args:
        rows: indices into ``sizes``, shape (n,).
        sizes, limit, budget: as of :func:`unit_batches`.

    Yields:
        the batch's rows, shape (R,), and the places in ``rows`` of the first of them, shape (k,);
        what is computed of the R - k others counts as nothing.
    """
    if not len(rows):
        return
    shapes = shapes_of(sizes[rows], np.arange(len(rows)), limit)
    kinds, kind_of = np.unique(shapes, axis=0, return_inverse=True)
    for kind in reversed(range(len(kinds))):
        members = np.flatnonzero(kind_of.reshape(-1) == kind)
        length = int(kinds[kind, 0])
        counts = row_counts(length, budget)
        at = 0
        while at < len(members):  # as of units of one record each, without a list of them
            part = members[at : at + cut(len(members) - at, length, budget)[0]]
            at += len(part)
            found = np.full(_fitting(len(part), counts), part[0], dtype=np.int64)
            found[: len(part)] = part
            yield rows[found], part


def _of_one_shape(units: list[np.ndarray], length: int, budget: int) -> Iterator[Batch]:
    counts = row_counts(length, budget)
    small = [rows for rows in units if len(rows) <= counts[-1]]
    for rows in units:
        if len(rows) > counts[-1]:
            yield from _alone(rows, length, budget)
    left = sum(map(len, small))
    at = 0
    while at < len(small):
        room = max(cut(left, length, budget)[0], _fitting(len(small[at]), counts))
        first, held = at, 0
        while at < len(small) and held + len(small[at]) <= room:
            held += len(small[at])
            at += 1
        left -= held
        yield _batch(small[first:at], _fitting(held, counts))


def _fitting(count: int, counts: tuple[int, ...]) -> int:
    return next(rows for rows in counts if rows >= count)


def _alone(rows: np.ndarray, length: int, budget: int) -> Iterator[Batch]:
    """A unit that is larger than a batch, in batches that hold nothing else."""
    at = 0
    for size in cut(len(rows), length, budget):
        part = rows[at : at + size]
        turn = np.zeros(size, dtype=np.int64)
        turn[: len(part)] = np.arange(at, at + len(part))
        at += len(part)
        batch = _batch([part], size)
        yield Batch(batch.rows, batch.owner, turn, more=at < len(rows))


def _batch(units: Sequence[np.ndarray], size: int) -> Batch:
    rows = np.concatenate(units)
    counts = [len(unit) for unit in units]
    found = np.full(size, rows[0], dtype=np.int64)
    found[: len(rows)] = rows
    owner = np.full(size, -1, dtype=np.int64)
    owner[: len(rows)] = np.repeat(np.arange(len(units)), counts)
    turn = np.zeros(size, dtype=np.int64)
    turn[: len(rows)] = np.concatenate([np.arange(count) for count in counts])
    return Batch(found, owner, turn)
