"""Line charts as SVG text for a page that needs nothing but itself; no drawing library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from lorica.common.display.colours import COLOURS

DASHES = ("", "6 3", "2 3", "8 3 2 3")
"""Beside the colour, so that a line is known in black and white, too."""

Points = Sequence[tuple[int, float]]

_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 34


def line_chart(lines: Mapping[str, Points], title: str, *, percent: bool = False) -> Markup | None:
    """Named lines over the rounds; None when there is nothing to draw.

    Args:
        lines: name -> (round, value); names are escaped.
        title: said by screen readers.
        percent: values are shares.
    """
    points = [point for line in lines.values() for point in line if math.isfinite(point[1])]
    if len(points) < 2:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right = min(xs), max(max(xs), min(xs) + 1)
    ticks = _ticks(min(ys), max(ys))
    low, high = min(ticks[0], min(ys)), max(ticks[-1], max(ys))

    def across(x: float) -> float:
        return _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _TOP + (high - y) / ((high - low) or 1.0) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            _WIDTH, _HEIGHT + 18 * len(lines), title
        )
    ]
    for tick in ticks:
        said = f"{100 * tick:.3g} %" if percent else f"{tick:.4g}"
        parts.append(
            Markup(
                '<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}" stroke="var(--faint)"/>'
                '<text x="{}" y="{:.1f}" text-anchor="end" font-size="12" fill="var(--quiet)">'
                "{}</text>"
            ).format(
                _LEFT, _WIDTH - _RIGHT, down(tick), down(tick), _LEFT - 6, down(tick) + 4, said
            )
        )
    for x in sorted({left, (left + right) // 2, right}):
        parts.append(
            Markup(
                '<text x="{:.1f}" y="{}" text-anchor="middle" font-size="12" fill="var(--quiet)">'
                "{}</text>"
            ).format(across(x), _HEIGHT - _BOTTOM + 18, x)
        )
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        dash = DASHES[(number // len(COLOURS)) % len(DASHES)] or DASHES[number % len(DASHES)]
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line if math.isfinite(y))
        at = _HEIGHT + 18 * number + 4
        parts.append(
            Markup(
                '<polyline points="{}" fill="none" stroke="{}" stroke-width="2" '
                'stroke-dasharray="{}"/>'
                '<line x1="{}" x2="{}" y1="{}" y2="{}" stroke="{}" stroke-width="2" '
                'stroke-dasharray="{}"/>'
                '<text x="{}" y="{}" font-size="12" fill="var(--ink)">{}</text>'
            ).format(
                *(path, colour, dash, _LEFT, _LEFT + 28, at - 4, at - 4, colour, dash),
                *(_LEFT + 36, at, escape(name)),
            )
        )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers over a range, three to six of them."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    first = math.floor(low / step) * step
    count = math.ceil((high - first) / step) + 1
    return [round(first + step * number, 12) for number in range(count)]
