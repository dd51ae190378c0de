"""Labels of records and those of a plan: which is which, and which is none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence

from lorica.common.data.names.alike import shown_spelling
from lorica.common.data.names.normal import alike_key, label_form
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError

_SHOWN = 5


def label_indices(records: Records, labels: Sequence[str], *, where: str) -> list[int]:
    """The position of every record's label in ``labels``.

    Raises:
        LoricaError: LOR-306 for a label that is not in the list.
    """
    position, unknown = known_labels(set(records.labels), labels, merged=records.merged)
    if unknown:
        row = next(i for i, label in enumerate(records.labels) if label == unknown[0])
        raise LoricaError(
            Code.DATA_UNKNOWN_LABEL,
            f"{where}: {len(unknown)} label(s) are not in the plan's task.labels: "
            f"{', '.join(map(shown_spelling, unknown[:_SHOWN]))}; the first is in record "
            f"{row + 1}.",
            mend=mend_of(unknown, labels),
        )
    return [position[label] for label in records.labels]


def known_labels(
    found: Collection[str], labels: Sequence[str], *, merged: bool
) -> tuple[dict[str, int], list[str]]:
    """Labels of records -> positions in the plan's list, and those that are not in it, sorted.

    A label is the plan's that it equals, else the one whose normal form it has, else, of records
    whose look-alikes are ``merged``, the only one that it looks like.
    """
    position = {label: index for index, label in enumerate(labels)}
    keys: list[Callable[[str], str]] = [label_form, *([alike_key] if merged else [])]
    for key in keys:
        other = [label for label in found if label not in position]
        by_key = _by_key(key, tuple(labels)) if other else {}
        for label in other:
            named = by_key.get(key(label), ())
            if len(named) == 1:
                position[label] = named[0]
    return position, sorted(label for label in found if label not in position)


@functools.lru_cache(maxsize=8)
def _by_key(key: Callable[[str], str], labels: tuple[str, ...]) -> dict[str, list[int]]:
    """Positions of the plan's labels by a form of them."""
    found: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        found.setdefault(key(label), []).append(index)
    return found


def mend_of(unknown: Sequence[str], labels: Sequence[str]) -> str | None:
    """A hint where an unknown label looks like one that is known."""
    plain = {alike_key(label): label for label in labels}
    for label in unknown:
        if (other := plain.get(alike_key(label))) is not None:
            return (
                f"{shown_spelling(label)} looks like {shown_spelling(other)}: correct the data, or "
                'set data.alike to "merge" to take such labels as one.'
            )
    return None
