"""An adapter judged on records: all figures of an evaluation, and how they are written down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lorica.common.machine.files import write_atomically
from lorica.common.saved.quality.answers import Answers
from lorica.common.saved.quality.calibration import (
    Bin,
    Calibrated,
    calibrated,
    calibration_error,
    reliability,
)
from lorica.common.saved.quality.choices import Coverage, Threshold, coverages
from lorica.common.saved.quality.groups import Group, by_group
from lorica.common.saved.quality.metrics import (
    DRAWS,
    Estimate,
    LabelQuality,
    by_label,
    confusion,
    estimates,
)


@dataclass(frozen=True)
class Judged:
    """Figures of one adapter on one set of records."""

    records: int
    metrics: dict[str, Estimate]
    labels: list[LabelQuality]
    confusion: np.ndarray
    """Right label by said label, shape (C, C)."""
    calibration_error: float
    reliability: list[Bin]
    calibrated: Calibrated | None
    coverages: list[Coverage]
    groups: list[Group] = field(default_factory=list)
    thresholds: list[Threshold] = field(default_factory=list)
    seed: int = 0
    draws: int = DRAWS

    def content(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"confusion": self.confusion.tolist()}


def judge(
    given: Answers,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    units: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Judged:
    """All figures but thresholds.

    Args:
        given: the answers.
        groups: column -> its cell of every record.
        units: the unit of every record, where records belong together.
        draws: of the bootstrap.
        seed: of draws and of the split for the temperature.
    """
    options: dict[str, Any] = {"draws": draws, "seed": seed, "units": units}
    return Judged(
        records=len(given.truth),
        metrics=estimates(given, **options),
        labels=by_label(given),
        confusion=confusion(given),
        calibration_error=calibration_error(given),
        reliability=reliability(given),
        calibrated=calibrated(given, seed=seed),
        coverages=coverages(given),
        groups=[
            group
            for column, values in (groups or {}).items()
            for group in by_group(given, column, values, **options)
        ],
        seed=seed,
        draws=draws,
    )


def write_judged(path: Path, judged: Judged) -> None:
    """Write the figures as JSON, whole or not at all.

    Raises:
        LoricaError: LOR-601, LOR-602.
    """
    write_atomically(path, json.dumps(judged.content(), indent=2, ensure_ascii=False) + "\n")
