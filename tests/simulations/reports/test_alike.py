"""What the report says of who is served worst, and of how alike sites are."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from lorica.server.results.round import RoundRecord, SiteRound
from lorica.simulations.reports.alike import (
    MOST_SHOWN,
    AlikeSites,
    alike_sentence,
    alike_sites,
    alike_svg,
    placed,
    worst_sentence,
)

NAMES = ["north", "south", "west"]
COSINES = [[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]


def record(**content: object) -> RoundRecord:
    sites = [SiteRound("east", "failed"), *(SiteRound(name, "ok") for name in NAMES)]
    return RoundRecord(1, sites, stage="class sums", **content)  # type: ignore[arg-type]


def test_the_sentence_names_who_is_near_and_who_is_apart() -> None:
    found = alike_sites([RoundRecord(0), record(alike=COSINES, alike_error=0.05)])
    assert found is not None and found.sites == NAMES
    said = alike_sentence(found)
    assert "north and south (0.90, ± 0.10 from noise)" in said
    assert "least like the others is west (0.15" in said
    assert "<svg" in str(alike_svg(found))


def test_sealed_rounds_say_so_and_noise_is_no_map() -> None:
    sealed = alike_sites([record(sealed=4)])
    assert "Sealed" in alike_sentence(sealed) and alike_svg(sealed) is None
    none: list[list[float | None]] = [[1.0, None], [None, 1.0]]
    assert "Noise is all" in alike_sentence(AlikeSites(NAMES[:2], none, None, 0))
    assert alike_sites([RoundRecord(0), RoundRecord(1, stage="head")]) is None
    assert alike_sentence(None) == "" and alike_svg(None) is None


def test_a_table_of_too_many_sites_is_left_out() -> None:
    count = MOST_SHOWN + 1
    found = AlikeSites([str(n) for n in range(count)], [[1.0] * count] * count, None, 0)
    assert not found.rows and len(AlikeSites(NAMES, COSINES, None, 0).rows) == 3  # type: ignore[arg-type]


def test_places_on_a_plane_are_found_again() -> None:
    """Unit vectors in a half plane: their distances are those on the map."""
    angles = np.array([0.0, 0.3, 0.5, 1.2])
    given = np.stack([np.cos(angles), np.sin(angles)], 1)
    found = placed((given @ given.T).tolist())
    for (a, b), (c, d) in zip(pairwise(given), pairwise(found), strict=True):
        assert np.linalg.norm(a - b) == pytest.approx(np.linalg.norm(c - d))


def test_the_worst_are_named_with_what_they_are_measured_on() -> None:
    worst = {
        "site": {"name": "south", "score": 0.5},
        "label": {"name": "heart", "score": 0.25, "records": 12},
        "label_at_sites": {"name": "skin", "score": 0.3},
    }
    said = worst_sentence({"worst": worst, "headline": "accuracy", "score_at_sites_mean": 0.75})
    assert "Worst site: south" in said and "75.0%" in said
    assert "heart, 25.0% of 12 test records" in said
    assert "paid for in ε: skin, 30.0%" in said
    assert worst_sentence({}) == ""
