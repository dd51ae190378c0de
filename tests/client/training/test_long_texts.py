"""Texts that are too long: a site says how many to its own people, and to nobody else."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lorica.client.training.session import Session
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.plan import RunPlan


@pytest.mark.parametrize(("longer", "said"), [(0, False), (1, True), (8, True)])
def test_a_site_says_the_share_to_its_own_people_alone(
    small_backbone: Path, caplog: pytest.LogCaptureFixture, longer: int, said: bool
) -> None:
    plan = RunPlan().replace(
        backbone={"source": str(small_backbone)},
        task={"labels": ["a", "b"]},
        adapter={"kind": "head"},
        training={"max_length": 8, "keep": "tail"},
    )
    texts = ["the old doctor has my money today and was lost"] * longer + ["card"] * (8 - longer)
    labels = ["a", "b"] * 4
    rows = [str(row) for row in range(8)]
    with caplog.at_level(logging.INFO, "lorica.site"):
        Session(
            plan,
            load_backbone(plan.backbone),
            Records(texts, labels, rows, [""] * 8),
            cache_bytes=2**20,
            secret=b"of the test",
        ).read()
    told = [record.getMessage() for record in caplog.records if "max_length" in record.getMessage()]
    assert len(told) == said
    if said:
        assert f"{-(-100 * longer // 8)} %" in told[0] and "their end" in told[0]
