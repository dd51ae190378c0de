"""Who is served worst, against a plain loop over the labels."""

from __future__ import annotations

import torch

from lorica.common.tasks.base import Metrics
from lorica.simulations.run.at_sites import FEWEST, ByStratum


def accuracy(table: torch.Tensor) -> Metrics:
    return Metrics({"accuracy": float(table.mean())})


def test_the_worst_label_is_of_those_with_enough_records() -> None:
    right = {"a": [1.0] * 12 + [0.0] * 4, "b": [1.0] * 6 + [0.0] * 8, "c": [0.0] * (FEWEST - 1)}
    strata = [label for label, values in right.items() for _ in values]
    table = torch.tensor([value for values in right.values() for value in values])
    found = ByStratum(accuracy, table, strata).worst()
    assert found is not None
    assert found["name"] == "b" and found["records"] == 14
    assert abs(found["score"] - 6 / 14) < 1e-6
    assert ByStratum(accuracy, table[:16], strata[:16]).worst() is None
