"""Packaged data sets: entry points of the group "lorica.datasets"."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from lorica.common.data.batches import Batch
from lorica.common.data.kinds import PACKAGED
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from lorica.common.data.request import DataRequest


def batches(request: DataRequest) -> Iterator[Batch]:
    """The training or test part of "embedded:NAME", as one batch."""
    name = request.location.removeprefix(PACKAGED)
    known = {point.name: point for point in entry_points(group="lorica.datasets")}
    if name not in known:
        raise LoricaError(
            Code.DATA_NOT_FOUND,
            f"There is no packaged data set '{name}'; there is: {', '.join(sorted(known))}.",
        )
    train, test = known[name].load()()
    rows = test if request.test else train
    yield {column: [row[column] for row in rows] for column in rows[0]}
