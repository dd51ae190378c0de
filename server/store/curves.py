"""Curves with fewer points than rounds, that look the same."""

from __future__ import annotations

from collections.abc import Sequence

CURVES = (
    "score",
    "site_score",
    "accuracy",
    "macro_f1",
    "loss",
    "site_accuracy",
    "site_accuracy_band",
    "site_loss",
    "bytes_up",
    "bytes_down",
    "seconds",
    "mean_norm",
    "noise_norm",
    "signal_to_noise",
    "epsilon",
)
"""Columns of a round that can be drawn over the rounds."""

Point = tuple[int, float]


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most ``most`` of the points, chosen so that peaks and dips stay.

    Largest-triangle-three-buckets: first and last stay; of every bucket between them the point
    that spans the largest triangle with the one kept before and the next bucket's mean.

    Source: Steinarsson, "Downsampling Time Series for Visual Representation", 2013, section 4.2.
    """
    count = len(points)
    if most < 3 or count <= most:
        return list(points) if count <= most else [points[0], points[-1]][:most]
    kept = [points[0]]
    width = (count - 2) / (most - 2)
    for bucket in range(most - 2):
        begin, end = 1 + int(bucket * width), 1 + int((bucket + 1) * width)
        following = points[end : 1 + int((bucket + 2) * width)] or [points[-1]]
        x = sum(point[0] for point in following) / len(following)
        y = sum(point[1] for point in following) / len(following)
        ax, ay = kept[-1]
        kept.append(
            max(
                points[begin:end],
                key=lambda p: abs((ax - x) * (p[1] - ay) - (ax - p[0]) * (y - ay)),
            )
        )
    return [*kept, points[-1]]
