"""Which of a site's records its models are compared on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorica.client.mechanism.evaluation import aside_by, set_aside
from lorica.common.data.records import Records
from lorica.common.plan import RunPlan

SHARE = 0.2
"""Of units, where the plan sets none aside."""


@dataclass(frozen=True)
class OwnRecords:
    """A site's records, divided for a comparison."""

    records: Records
    aside: np.ndarray
    """Which of them models are compared on, bool (N,); the site's own models train on the rest."""
    unseen: bool
    """Whether the federation set the same records aside; else it trained on them, under its ε."""


def own_records(records: Records, plan: RunPlan, secret: bytes) -> OwnRecords:
    """Records set aside as the plan's evaluation did it; by the same secret where it did not."""
    aside = set_aside(records, plan, secret)
    if aside.any():
        return OwnRecords(records, aside, True)
    return OwnRecords(records, aside_by(records, SHARE, secret), False)
