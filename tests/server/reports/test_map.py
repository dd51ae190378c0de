"""How alike sites are, in words and as a map that stands in any page."""

from __future__ import annotations

import itertools
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from lorica.server.reports.map import alike_map, placed
from lorica.server.results.alike import MOST_SHOWN, AlikeSites, alike_sites
from lorica.server.results.round import RoundRecord, SiteRound

NAMES = ["north", "south", "west"]
COSINES: list[list[float | None]] = [[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]]


def record(**content: object) -> RoundRecord:
    sites = [SiteRound("east", "failed"), *(SiteRound(name, "ok") for name in NAMES)]
    return RoundRecord(1, sites, stage="class sums", **content)  # type: ignore[arg-type]


def test_the_sentence_names_who_is_near_and_who_is_apart() -> None:
    found = alike_sites([RoundRecord(0), record(alike=COSINES, alike_error=0.05)])
    assert found is not None and found.sites == NAMES
    assert "north and south (0.90, ± 0.10 from noise)" in found.sentence
    assert "least like the others is west (0.15" in found.sentence


def test_sealed_rounds_say_so_and_noise_is_no_map() -> None:
    sealed = alike_sites([record(sealed=4)])
    assert sealed is not None and "Sealed" in sealed.sentence and alike_map(sealed) is None
    none: list[list[float | None]] = [[1.0, None], [None, 1.0]]
    assert "Noise is all" in AlikeSites(NAMES[:2], none, None).sentence
    assert alike_sites([RoundRecord(0), RoundRecord(1, stage="head")]) is None
    assert alike_map(None) is None


def test_what_is_kept_is_read_back() -> None:
    found = AlikeSites(["a\x1b[2Jb", "c"], [[1.0, 0.123456], [0.123456, 1.0]], 0.02)
    kept = found.as_json()
    assert "\x1b" not in kept["sites"][0] and kept["cosines"][0] == [1.0, 0.1235]
    again = AlikeSites.from_json(kept)
    assert again is not None and again.as_json() == kept and AlikeSites.from_json({}) is None


def test_a_table_of_too_many_sites_is_left_out() -> None:
    count = MOST_SHOWN + 1
    found = AlikeSites([str(n) for n in range(count)], [[1.0] * count] * count, None)
    assert not found.rows and len(AlikeSites(NAMES, COSINES, None).rows) == 3


def test_places_on_a_plane_are_found_again() -> None:
    """Unit vectors in a half plane: their distances are those on the map."""
    angles = np.array([0.0, 0.3, 0.5, 1.2])
    given = np.stack([np.cos(angles), np.sin(angles)], 1)
    found = placed((given @ given.T).tolist())
    for (a, b), (c, d) in zip(pairwise(given), pairwise(found), strict=True):
        assert np.linalg.norm(a - b) == pytest.approx(np.linalg.norm(c - d))


def drawn(found: AlikeSites) -> tuple[list[tuple[float, float]], list[tuple[float, float, str]]]:
    """Points, and labels with where they begin."""
    tree = ElementTree.fromstring(str(alike_map(found)))
    points = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in tree.iter("circle")]
    labels = [(float(t.attrib["x"]), float(t.attrib["y"]), str(t.text)) for t in tree.iter("text")]
    return points, labels


def test_on_the_map_near_sites_are_near_and_names_do_not_cover_each_other() -> None:
    points, labels = drawn(AlikeSites(NAMES, COSINES, 0.05))
    apart = {
        (a, b): np.linalg.norm(np.subtract(points[a], points[b]))
        for a, b in itertools.combinations(range(3), 2)
    }
    assert apart[0, 1] < 0.5 * min(apart[0, 2], apart[1, 2])
    assert [name for _, _, name in labels] == NAMES
    same: list[list[float | None]] = [[1.0] * 12 for _ in range(12)]
    _, crowded = drawn(AlikeSites([f"site {n}" for n in range(12)], same, None))
    lines = sorted(y for _, y, _ in crowded)
    assert min(b - a for a, b in pairwise(lines)) >= 14


def test_names_are_text_and_nothing_else_and_the_map_brings_no_style_of_its_own() -> None:
    """As the monitor's policy of content asks."""
    hostile = ["<script>alert(1)</script>", '" onload="x', "w" * 500]
    found = str(alike_map(AlikeSites(hostile, COSINES, None)))
    assert "<script" not in found and 'onload="x"' not in found
    assert not re.search(r"<style|\sstyle=|\son\w+=\"|href=", found.replace("&#34;", ""))
    assert "w" * 19 not in re.sub(r'aria-label="[^"]*"', "", found)
