"""The plots of a simulation: SVG for the report, one PNG for a README.

Lines differ in dashes as well as in colour.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lorica.common.wording import NO_PRIVACY, percent
from lorica.server.records import RoundRecord
from lorica.simulations.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    RED,
    SKY,
    label_ends,
    new_figure,
    short,
    svg_text,
    write_png,
)
from lorica.simulations.tables import Summary, comparison_rows, epsilons

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


def accuracy_svg(summary: Summary, rounds: Sequence[RoundRecord]) -> str | None:
    """Accuracy by round, the baselines as reference lines; None when nothing was evaluated."""
    if not any(record.accuracy is not None for record in rounds):
        return None
    with new_figure(5.6, 3.6) as figure:
        _draw_accuracy(figure.add_subplot(), summary, rounds)
        return svg_text(figure, "accuracy", "Accuracy by round, with the baselines")


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


def picture(
    summary: Summary, rounds: Sequence[RoundRecord], path: Path, *, budget: float | None = None
) -> None:
    """One wide PNG: accuracy by round, the comparison, ε by site.

    Args:
        summary: what summary.json holds.
        rounds: the run's records.
        path: the file to write, whole or not at all.
        budget: the plan's ε, drawn as a line when given and finite.
    """
    with new_figure(15, 4.6) as figure:
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.12)
        left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1.05, 0.8])
        _draw_accuracy(left, summary, rounds)
        left.set_title("Accuracy by round")
        _draw_comparison(middle, summary)
        _draw_epsilon_by_site(right, summary, budget)
        write_png(figure, path)


def _draw_accuracy(axes: Any, summary: Summary, rounds: Sequence[RoundRecord]) -> None:
    points = [(r.round, r.accuracy) for r in rounds if r.accuracy is not None]
    marks = []
    for row in comparison_rows(summary):
        look = _REFERENCES.get(row.kind)
        if look is None or row.accuracy is None:
            continue
        name, colour, dashes = look
        axes.axhline(row.accuracy, color=colour, linestyle=dashes, linewidth=1.5)
        if row.low is not None and row.high is not None:
            axes.axhspan(row.low, row.high, color=colour, alpha=0.15, linewidth=0)
        marks.append((row.accuracy, name, colour))
    if points:
        axes.plot(*zip(*points, strict=True), color=BLUE, marker="o", markersize=5, linewidth=2.4)
        marks.append((points[-1][1], "the federation", BLUE))
    axes.set_xlabel("round (0 is the start)")
    axes.set_ylabel("accuracy on the test data")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    low, high = axes.get_ylim()
    axes.set_ylim(max(low - 0.02, 0), min(high + 0.02, 1.005))
    last = max((number for number, _ in points), default=1)
    axes.set_xlim(-0.03 * last - 0.05, last * 1.03 + 0.05)
    label_ends(axes, marks)


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


def _draw_comparison(axes: Any, summary: Summary) -> None:
    rows = [r for r in comparison_rows(summary) if r.kind != "site" and r.accuracy is not None]
    for place, row in enumerate(reversed(rows)):
        accuracy = row.accuracy or 0.0
        axes.barh(place, accuracy, height=min(0.62, 0.16 * len(rows)), color=_BARS[row.kind])
        end = accuracy
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], color=INK, linewidth=1.4, marker="|")
            end = row.high
        weight = "bold" if row.kind == "federation" else "normal"
        axes.text(end + 0.015, place, percent(accuracy), va="center", fontweight=weight)
    names = [f"{row.what}\n{_privacy_note(row.privacy)}" for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.set_xlabel("accuracy on the test data")
    axes.set_title("What taking part is worth")


def _draw_epsilon_by_site(axes: Any, summary: Summary, budget: float | None) -> None:
    values = epsilons(summary)
    axes.set_title("Privacy spent by site")
    if not values or not all(map(math.isfinite, values.values())):
        text = NO_PRIVACY if values else "ε is not known"
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes,
                  color=RED, fontsize=14, fontweight="bold")  # fmt: skip
        axes.set_axis_off()
        return
    sites = sorted(values)[:MOST_SITES]
    axes.bar(range(len(sites)), [values[site] for site in sites], color=SKY, width=0.7)
    if budget is not None and math.isfinite(budget):
        axes.axhline(budget, color=RED, linestyle=(0, (5, 2)), linewidth=1.6)
        axes.text(-0.4, budget * 1.02, f"budget ε = {budget:g}", va="bottom", fontsize=9)
    axes.set_ylim(0, max(budget or 0.0, *values.values()) * 1.15)
    steep = len(sites) > 4 or any(len(site) > 9 for site in sites)
    names = [short(site, 14) for site in sites] if len(sites) <= 24 else [""] * len(sites)
    axes.set_xticks(range(len(sites)), names, rotation=90 if steep else 0)
    more = f" (the first {MOST_SITES} of {len(values)})" if len(values) > MOST_SITES else ""
    axes.set_xlabel(f"site{more}")
    axes.set_ylabel("ε of the whole run (nats)")


def _spent_by_site(summary: Summary) -> dict[str, list[float]]:
    privacy = summary.get("privacy") or {}
    spent = {
        site: [0.0, *map(float, figures.get("epsilon_by_round") or [])]
        for site, figures in privacy.items()
    }
    return {site: v for site, v in spent.items() if len(v) > 1 and all(map(math.isfinite, v))}


def _privacy_note(privacy: str) -> str:
    return {"–": "no training", "none": "no privacy"}.get(privacy, privacy)


_REFERENCES: dict[str, tuple[str, str, Any]] = {
    "zero-shot": ("zero-shot", GREY, (0, (1.5, 1.5))),
    "alone": ("each site alone", ORANGE, (0, (6, 2))),
    "pooled": ("pooled, not private", GREEN, (0, (6, 2, 1.5, 2))),
}
_BARS = {"zero-shot": GREY, "alone": ORANGE, "federation": BLUE, "pooled": GREEN}
