"""A map of sites: near ones have similar class sums.

Every site stands where the distances √(2 - 2·cosine) to the others are kept best in two dimensions
(classical scaling, Torgerson 1952). Drawn as SVG text that follows the colours of the page it is in
and needs neither a style nor a script.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from lorica.common.display.colours import BLUE
from lorica.common.display.text import printable
from lorica.server.results.alike import AlikeSites

_WIDTH, _HEIGHT, _MARGIN = 640, 420, 34
_LINE, _LETTER = 15, 7.2  # pixels of a label of 13
_ROOM = 110  # pixels for labels on the right
_LEAST = 0.1  # a distance that is not drawn larger than the picture, for it is hardly one
_LONGEST = 18  # letters of a label

TITLE = "Sites as a map: near ones have similar class sums"


def alike_map(found: AlikeSites | None) -> Markup | None:
    """The map; None where fewer than three sites can be told."""
    if found is None or len(found.told) < 3:
        return None
    places = placed([[found.cosines[a][b] for b in found.told] for a in found.told])
    names = [_short(found.sites[site]) for site in found.told]
    points = _drawn(places)
    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}. {}">').format(
            _WIDTH, _HEIGHT, TITLE, found.sentence
        )
    ]
    for (x, y), (left, bottom), name in zip(points, _labels(points, names), names, strict=True):
        parts.append(
            Markup(
                '<circle cx="{:.1f}" cy="{:.1f}" r="5" fill="var(--s1, {})"/>'
                '<text x="{:.1f}" y="{:.1f}" font-size="13" fill="var(--ink)">{}</text>'
            ).format(x, y, BLUE, left, bottom, name)
        )
    return Markup("").join([*parts, Markup("</svg>")])


def placed(cosines: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Places (K, 2) whose distances are nearest to √(2 - 2·cosine), in the least-squares sense of
    their inner products; a cosine that is not told counts as 0."""
    given = np.array([[0.0 if c is None else c for c in row] for row in cosines])
    squares = 2 - 2 * given
    center = np.eye(len(given)) - 1 / len(given)
    values, vectors = np.linalg.eigh(-center @ squares @ center / 2)
    found: np.ndarray = vectors[:, -2:][:, ::-1] * np.sqrt(values[-2:][::-1].clip(0))
    return found


def _drawn(places: np.ndarray) -> list[tuple[float, float]]:
    """Where the places stand in the picture: as large as it allows, alike in both directions."""
    low, high = places.min(axis=0), places.max(axis=0)
    across, up = np.maximum(high - low, _LEAST)
    scale = min((_WIDTH - 2 * _MARGIN - _ROOM) / across, (_HEIGHT - 2 * _MARGIN) / up)
    moved = (places - (low + high) / 2) * scale
    return [((_WIDTH - _ROOM) / 2 + x, _HEIGHT / 2 - y) for x, y in moved.tolist()]


def _labels(
    points: Sequence[tuple[float, float]], names: Sequence[str]
) -> list[tuple[float, float]]:
    """Where every name begins and stands: beside its point, lower where another is in the way."""
    found: dict[int, tuple[float, float]] = {}
    for site in sorted(range(len(points)), key=lambda place: points[place][1]):
        (x, y), width = points[site], _LETTER * len(names[site])
        left = x + 9 if x + 9 + width < _WIDTH else x - 9 - width
        bottom = y + 4
        while any(
            abs(bottom - other) < _LINE
            and left < begins + _LETTER * len(names[place])
            and begins < left + width
            for place, (begins, other) in found.items()
        ):
            bottom += 1
        found[site] = left, bottom
    return [found[site] for site in range(len(points))]


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
