"""The plots of a simulation as SVG for the report.

Lines differ in dashes as well as in colour.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lorica.common.display.colours import BLUE, GREEN, GREY, ORANGE, PAPER, PURPLE, RED, SKY
from lorica.common.display.figures import new_figure, short, svg_text
from lorica.common.display.wording import capitalise, is_share, metric_name, metric_text
from lorica.server.results.round import RoundRecord
from lorica.simulations.reports.figures import label_ends
from lorica.simulations.reports.tables import Summary, comparison_rows, headline

SITE_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))

MOST_LINES = 12
"""With more sites than these a band takes the place of a line per site."""

MOST_SITES = 40
"""The heat map and the bars by site show these many sites at most."""

_SHARES = LinearSegmentedColormap.from_list(
    "shares",
    ["#eef4fa", SKY, BLUE, "#06263f"],
    N=48,  # from 50 on the colour bar would become a bitmap
)


def score_svg(summary: Summary, rounds: Sequence[RoundRecord]) -> str | None:
    """The task's headline metric by round, the baselines as reference lines; None when nothing
    was evaluated."""
    if not any(record.score is not None for record in rounds):
        return None
    with new_figure(5.6, 3.6) as figure:
        draw_score(figure.add_subplot(), summary, rounds)
        return svg_text(figure, "score", f"{score_title(summary)} by round, with the baselines")


def epsilon_svg(summary: Summary, budget: float) -> str | None:
    """ε spent by round at each site against ``budget``; None without privacy or without figures.

    Sites whose curves stay within a hundredth of the budget of each other share a line.
    Element i of a site's ``epsilon_by_round`` is taken as what round i + 1 left spent.
    """
    spent = _spent_by_site(summary)
    if not spent or math.isinf(budget):
        return None
    with new_figure(5.6, 3.6) as figure:
        _draw_spending(figure.add_subplot(), spent, budget)
        return svg_text(figure, "epsilon", "Privacy budget spent by round, by site")


def labels_svg(summary: Summary) -> str | None:
    """How each label's records lie among the sites, as a heat map; None when not known.

    A column is a site, a cell's shade the label's share of that site's records; with few cells
    each shows its count.
    """
    counts: dict[str, dict[str, int]] = summary.get("label_counts") or {}
    sites = sorted(counts)[:MOST_SITES]
    labels = list(dict.fromkeys(label for site in sites for label in counts[site]))
    if not labels:
        return None
    few = len(labels) * len(sites) <= 160
    height = 1.7 + len(labels) * (0.32 if len(labels) <= 20 else 0.17)
    width = max(5.2, 3.2 + 0.35 * len(sites))
    with new_figure(width, height) as figure:
        axes = figure.add_subplot()
        _draw_labels(axes, figure, counts, sites, labels, few)
        return svg_text(figure, "labels", "Share of each label among each site's records")


def score_title(summary: Summary) -> str:
    """The headline metric's name with a large first letter."""
    return capitalise(metric_name(headline(summary)))


def draw_score(axes: Any, summary: Summary, rounds: Sequence[RoundRecord]) -> None:
    """The headline metric by round with the baselines, into axes."""
    metric = headline(summary)
    points = [(r.round, r.score) for r in rounds if r.score is not None and math.isfinite(r.score)]
    marks = []
    for row in comparison_rows(summary):
        look = _REFERENCES.get(row.kind)
        if look is None or row.score is None or not math.isfinite(row.score):
            continue
        name, colour, dashes = look
        axes.axhline(row.score, color=colour, linestyle=dashes, linewidth=1.5)
        if row.low is not None and row.high is not None:
            axes.axhspan(row.low, row.high, color=colour, alpha=0.15, linewidth=0)
        marks.append((row.score, name, colour))
    if points:
        axes.plot(*zip(*points, strict=True), color=BLUE, marker="o", markersize=5, linewidth=2.4)
        marks.append((points[-1][1], "the federation", BLUE))
    axes.set_xlabel("round (0 is the start)")
    axes.set_ylabel(f"{metric_name(metric)} on the test data")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if is_share(metric):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low - 0.02, 0), min(high + 0.02, 1.005))
    last = max((number for number, _ in points), default=1)
    axes.set_xlim(-0.03 * last - 0.05, last * 1.03 + 0.05)
    label_ends(axes, marks, lambda value: metric_text(metric, value))


def _draw_spending(axes: Any, spent: dict[str, list[float]], budget: float) -> None:
    count = max(map(len, spent.values()))
    numbers = range(count)
    if len(spent) <= MOST_LINES:
        groups = _alike(spent, tolerance=0.01 * budget)
        for index, (sites, values) in enumerate(groups):
            more = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
            every = len(groups) == 1 and more
            axes.plot(
                range(len(values)),
                values,
                label=f"all {len(sites)} sites" if every else f"{short(sites[0], 16)}{more}",
                color=SITE_COLOURS[index % len(SITE_COLOURS)],
                linestyle=DASHES[index // len(SITE_COLOURS) % len(DASHES)],
                marker="o",
                markersize=3.5,
            )
    else:
        by_round = [[v[min(i, len(v) - 1)] for v in spent.values()] for i in numbers]
        low, high = [min(values) for values in by_round], [max(values) for values in by_round]
        axes.fill_between(
            numbers, low, high, color=SKY, alpha=0.5, linewidth=0,
            label=f"smallest to largest of {len(spent)} sites",
        )  # fmt: skip
        median = [statistics.median(values) for values in by_round]
        axes.plot(numbers, median, color=BLUE, label="median", marker="o", markersize=4)
    axes.axhline(
        budget, color=RED, linestyle=(0, (5, 2)), linewidth=1.6, label=f"budget ε = {budget:g}"
    )
    axes.set_ylim(0, max(budget, *(v[-1] for v in spent.values())) * 1.08)
    axes.set_xlim(0, max(count - 1, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel("ε spent so far (nats)")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=9)


def _alike(spent: dict[str, list[float]], tolerance: float) -> list[tuple[list[str], list[float]]]:
    """Sites grouped by curves that a reader could not tell apart, each with its first's curve."""
    groups: list[tuple[list[str], list[float]]] = []
    for site, values in sorted(spent.items()):
        for sites, first in groups:
            if len(first) == len(values) and all(
                abs(a - b) <= tolerance for a, b in zip(first, values, strict=True)
            ):
                sites.append(site)
                break
        else:
            groups.append(([site], values))
    return groups


def _draw_labels(
    axes: Any,
    figure: Any,
    counts: dict[str, dict[str, int]],
    sites: list[str],
    labels: list[str],
    few: bool,
) -> None:
    totals = {site: sum(counts[site].values()) or 1 for site in sites}
    shares = [[counts[site].get(label, 0) / totals[site] for site in sites] for label in labels]
    most = max(map(max, shares)) or 1.0
    mesh = axes.pcolormesh(shares, cmap=_SHARES, vmin=0, vmax=most, edgecolor=PAPER, linewidth=1)
    axes.grid(False)
    axes.invert_yaxis()
    steep = len(sites) > 6 or max(map(len, sites)) > 10
    axes.set_xticks(
        [index + 0.5 for index in range(len(sites))],
        [short(site, 18) for site in sites],
        rotation=90 if steep else 0,
    )
    axes.set_yticks(
        [index + 0.5 for index in range(len(labels))],
        [short(label, 34) for label in labels],
        fontsize=10 if len(labels) <= 20 else 8,
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    more = f" (the first {MOST_SITES} of {len(counts)})" if len(counts) > MOST_SITES else ""
    axes.set_xlabel(f"site{more}")
    axes.set_ylabel("label")
    if few:
        for row, label in enumerate(labels):
            for column, site in enumerate(sites):
                colour = "#ffffff" if shares[row][column] > 0.55 * most else "#0b1826"
                axes.text(
                    column + 0.5, row + 0.5, str(counts[site].get(label, 0)), color=colour,
                    ha="center", va="center", fontsize=9,
                )  # fmt: skip
    percents = FuncFormatter(lambda value, _: f"{100 * value:.0f}%")
    bar = figure.colorbar(mesh, ax=axes, format=percents, location="top", aspect=40, pad=0.02)
    bar.set_label("share of the site's records")
    bar.outline.set_visible(False)
    bar.solids.set_edgecolor("face")  # no hairlines between the steps


def _spent_by_site(summary: Summary) -> dict[str, list[float]]:
    privacy = summary.get("privacy") or {}
    spent = {
        site: [0.0, *map(float, figures.get("epsilon_by_round") or [])]
        for site, figures in privacy.items()
    }
    return {site: v for site, v in spent.items() if len(v) > 1 and all(map(math.isfinite, v))}


_REFERENCES: dict[str, tuple[str, str, Any]] = {
    "zero-shot": ("zero-shot", GREY, (0, (1.5, 1.5))),
    "alone": ("each site alone", ORANGE, (0, (6, 2))),
    "pooled": ("pooled, not private", GREEN, (0, (6, 2, 1.5, 2))),
}
