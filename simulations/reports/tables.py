"""The closing tables of a simulation, and the words and units that all its views share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.text import Text

from lorica.common.display.long_texts import LongTexts
from lorica.common.display.tables import Table
from lorica.common.display.text import printable
from lorica.common.display.wording import (
    NO_PRIVACY,
    duration,
    epsilon_text,
    human_bytes,
    metric_name,
    metric_text,
)

Summary = Mapping[str, Any]
"""What summary.json holds."""

SEEDED = "seeded noise: reproducible, so NOT private — for simulation only"
SECURE = "secure noise: drawn from the operating system's generator"

MOST_NAMED_SITES = 8
"""With more sites than these the comparison gives the spread alone."""

Kind = Literal["zero-shot", "alone", "site", "federation", "pooled"]


@dataclass(frozen=True)
class Row:
    """One row of the comparison; ``low`` and ``high`` span the sites, where there are several."""

    kind: Kind
    what: str
    data: str
    privacy: str
    score: float | None
    """By the task's headline metric."""
    low: float | None = None
    high: float | None = None


def comparison_rows(summary: Summary) -> list[Row]:
    """What the federation's score is to be compared with, from no data to all data.

    Baselines that were not measured are left out.
    """
    baselines = summary.get("baselines") or {}
    budget = epsilons(summary)
    sites = "site" if len(budget) == 1 else "sites"
    same = privacy_text(list(budget.values()))
    rows: list[Row] = []
    if baselines.get("zero_shot") is not None:
        rows.append(Row("zero-shot", "zero-shot", "label names only", "–", baselines["zero_shot"]))
    alone = baselines.get("alone") or {}
    mean = baselines.get("alone_mean")
    if mean is None and alone:
        mean = sum(alone.values()) / len(alone)
    if mean is not None:
        spread = (min(alone.values()), max(alone.values())) if len(alone) > 1 else (None, None)
        rows.append(Row("alone", "sites alone, mean", "its own records", same, mean, *spread))
    if 1 < len(alone) <= MOST_NAMED_SITES:
        rows += [
            Row("site", printable(site), _records(summary, [site]), "same", score)
            for site, score in sorted(alone.items())
        ]
    rows.append(
        Row(
            "federation",
            "the federation",
            f"{_records(summary, list(budget))}, {len(budget)} {sites}",
            same,
            summary.get("score", summary.get("accuracy")),
        )
    )
    pooled = baselines.get("pooled_without_privacy")
    if pooled is not None:
        rows.append(Row("pooled", "all data pooled", "all, in one place", "none", pooled))
    return rows


def headline(summary: Summary) -> str:
    """The task's metric that runs are compared by."""
    return str(summary.get("headline") or "accuracy")


def comparison_table(summary: Summary) -> Table:
    """The comparison side by side, the federation's row emphasised."""
    metric = headline(summary)
    table = Table(
        title="What taking part is worth",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("what")
    table.add_column("data seen")
    table.add_column("privacy")
    table.add_column(metric_name(metric), justify="right", no_wrap=True)
    table.add_column("", min_width=8, max_width=13)
    for row in comparison_rows(summary):
        style = _STYLES[row.kind]
        what = f"  {row.what}" if row.kind == "site" else row.what
        figure = Text(metric_text(metric, row.score))
        if row.low is not None and row.high is not None:
            low, high = metric_text(metric, row.low), metric_text(metric, row.high)
            figure.append(f"\n{low} – {high}", style="dim")
        bar = Bar(1, 0, bar_share(row.score), color=_COLOURS[row.kind])
        mark = "▶ " if row.kind == "federation" else ""
        cells: list[RenderableType] = [Text(f"{mark}{what}"), Text(row.data), Text(row.privacy)]
        table.add_row(*cells, figure, bar, style=style)
    return table


def bar_share(score: float | None) -> float:
    """Length of a score's bar as a share of the longest; R² may lie below 0."""
    return 0.0 if score is None or not math.isfinite(score) else min(max(score, 0.0), 1.0)


def closing_table(summary: Summary, folder: Path) -> Table:
    """What the run guaranteed, what it cost, and where its results lie."""
    table = Table(
        show_header=False,
        title="The run",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
    )
    table.add_column("", style="bold", no_wrap=True)
    table.add_column("", overflow="fold")
    values = list(epsilons(summary).values())
    privacy = Text(epsilon_span(values), style="" if _finite(values) else "bold white on red")
    table.add_row("ε by site", privacy)
    table.add_row(
        "sent per round", f"{human_bytes(summary.get('bytes_up_per_round'))} by all sites"
    )
    down = human_bytes(summary.get("bytes_down_per_round"))
    table.add_row("received per round", f"{down} by all sites")
    table.add_row("time", duration(summary.get("seconds")))
    table.add_row("peak memory", human_bytes(summary.get("peak_rss_bytes")))
    table.add_row("seed", str(summary.get("seed", "–")))
    seeded = summary.get("noise") == "seeded"
    table.add_row("noise", Text(noise_text(summary), style="bold yellow" if seeded else ""))
    if cut_text(summary):
        table.add_row("long texts", Text(cut_text(summary), style="bold yellow"))
    for name, text in sums_rows(summary):
        table.add_row(name, Text(text))
    table.add_row("results", Text(printable(str(folder))))
    return table


def cut_text(summary: Summary) -> str:
    """What there is to say of texts longer than what is read of them; "" when nothing is."""
    return LongTexts(**summary.get("cut_texts") or {}).sentence


def epsilons(summary: Summary) -> dict[str, float]:
    """ε spent by each site; the summary's "inf" becomes infinity."""
    return {site: float(value) for site, value in (summary.get("epsilon") or {}).items()}


def epsilon_span(values: list[float]) -> str:
    """The smallest and largest ε over the sites, loudly when there is no privacy."""
    if not values:
        return "–"
    if not _finite(values):
        return NO_PRIVACY
    low, high = epsilon_text(min(values)), epsilon_text(max(values))
    return high if low == high else f"{low} – {high}"


def privacy_text(values: list[float]) -> str:
    """What the sites' guarantee amounts to, in a table's cell."""
    if not values:
        return "–"
    return f"ε ≤ {epsilon_text(max(values))}" if _finite(values) else "none (ε = ∞)"


def noise_text(summary: Summary) -> str:
    """The kind of noise, with the warning that belongs to it."""
    return SEEDED if summary.get("noise") == "seeded" else SECURE


def sums_rows(summary: Summary) -> list[tuple[str, str]]:
    """What is said of a run whose coordinator sees sums alone; nothing of others."""
    found = summary.get("sums")
    if found is None:
        return []
    how = "the protocol was run" if found["protocol"] == "run" else found["protocol"]
    figures = (
        f"{epsilon_text(float(found['epsilon_sums']), 2)} to who sees sums, "
        f"{epsilon_text(float(found['epsilon_colluding']), 2)} with "
        f"{found['honest_sites']} honest sites, "
        f"{epsilon_text(float(found['epsilon_alone']), 2)} if all other sites collude"
    )
    return [("sealed", f"the coordinator saw sums over sites alone ({how})"), ("ε", figures)]


def _finite(values: list[float]) -> bool:
    return all(math.isfinite(value) for value in values)


def _records(summary: Summary, sites: list[str]) -> str:
    privacy = summary.get("privacy") or {}
    counts = [privacy[site]["records"] for site in sites if site in privacy]
    return f"{sum(counts):,} records" if counts else "records"


_STYLES: dict[Kind, str] = {
    "zero-shot": "",
    "alone": "",
    "site": "dim",
    "federation": "bold",
    "pooled": "",
}
_COLOURS: dict[Kind, str] = {
    "zero-shot": "bright_black",
    "alone": "yellow",
    "site": "yellow",
    "federation": "blue",
    "pooled": "green",
}
