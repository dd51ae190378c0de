"""The one picture of a simulation: a wide PNG for a README."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorica.common.display.colours import BLUE, GREEN, GREY, INK, ORANGE, RED, SKY
from lorica.common.display.figures import new_figure, short
from lorica.common.display.wording import NO_PRIVACY, is_share, metric_name, metric_text
from lorica.server.results.round import RoundRecord
from lorica.simulations.reports.figures import write_png
from lorica.simulations.reports.plots import MOST_SITES, draw_score, score_title
from lorica.simulations.reports.tables import Summary, comparison_rows, epsilons, headline

_BARS = {"zero-shot": GREY, "alone": ORANGE, "federation": BLUE, "pooled": GREEN}


def picture(
    summary: Summary, rounds: Sequence[RoundRecord], path: Path, *, budget: float | None = None
) -> None:
    """One wide PNG: the headline metric by round, the comparison, ε by site.

    Args:
        summary: what summary.json holds.
        rounds: the run's records.
        path: the file to write, whole or not at all.
        budget: the plan's ε, drawn as a line when given and finite.
    """
    with new_figure(15, 4.6) as figure:
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.12)
        left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1.05, 0.8])
        draw_score(left, summary, rounds)
        left.set_title(f"{score_title(summary)} by round")
        _draw_comparison(middle, summary)
        _draw_epsilon_by_site(right, summary, budget)
        write_png(figure, path)


def _draw_comparison(axes: Any, summary: Summary) -> None:
    metric = headline(summary)
    rows = [r for r in comparison_rows(summary) if r.kind != "site" and r.score is not None]
    for place, row in enumerate(reversed(rows)):
        score = row.score or 0.0
        axes.barh(place, score, height=min(0.62, 0.16 * len(rows)), color=_BARS[row.kind])
        end = max(score, 0.0)
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], color=INK, linewidth=1.4, marker="|")
            end = max(row.high, 0.0)
        weight = "bold" if row.kind == "federation" else "normal"
        axes.text(end + 0.015, place, metric_text(metric, score), va="center", fontweight=weight)
    names = [f"{row.what}\n{_privacy_note(row.privacy)}" for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", length=0)
    if is_share(metric):
        axes.set_xlim(0, 1.12)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    else:
        least, most = axes.get_xlim()
        axes.set_xlim(min(least, 0.0), max(most, 0.1) + 0.18 * (most - least))
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.set_xlabel(f"{metric_name(metric)} on the test data")
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


def _privacy_note(privacy: str) -> str:
    return {"–": "no training", "none": "no privacy"}.get(privacy, privacy)
