"""The report of a simulation: one HTML page that needs nothing but itself.

Names of sites and labels come from others. jinja2 escapes everything; the plots, the only markup
let through, are rebuilt from parsed trees (:mod:`lorica.simulations.reports.figures`); and the
page's own content policy forbids scripts and anything from outside.
"""

from __future__ import annotations

import functools
import importlib.resources
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from lorica.common.display.pages import page_environment
from lorica.common.display.wording import capitalise, is_share
from lorica.common.machine.files import write_atomically
from lorica.common.plan import RunPlan
from lorica.common.plan.io import to_toml
from lorica.common.plan.stages import schedule
from lorica.common.plan.subject import SYNTHETIC_NOTES
from lorica.common.saved.trained import what_is_trained
from lorica.server.reports.map import alike_map
from lorica.server.results.alike import alike_sites
from lorica.server.results.kept_own import kept_own_said
from lorica.server.results.round import RoundRecord, SiteStatus
from lorica.simulations.reports import plots
from lorica.simulations.reports.benefit import benefit_rows, benefit_sentence
from lorica.simulations.reports.tables import (
    Summary,
    bar_share,
    comparison_rows,
    cut_text,
    epsilon_span,
    epsilons,
    headline,
    noise_text,
    sums_rows,
)
from lorica.simulations.reports.verdict import verdict
from lorica.simulations.reports.worst import worst_sentence


@dataclass(frozen=True)
class Problem:
    """A site that gave no update, with the rounds in which it gave this reason."""

    site: str
    status: SiteStatus
    reason: str
    rounds: list[int]


@dataclass(frozen=True)
class SiteRow:
    """What the simulator knows of one site."""

    site: str
    privacy: dict[str, Any]
    epsilon: float | None
    alone: float | None
    seconds: float | None
    """From request to answer, over all rounds."""


def write_report(
    path: Path, plan: RunPlan, rounds: Sequence[RoundRecord], summary: Summary
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file.
        plan: the run's plan, its labels filled in.
        rounds: all records; round 0 is the evaluation of the start.
        summary: what summary.json holds.

    Raises:
        LoricaError: LOR-601 disk full, LOR-602 refused by the system.
    """
    template = _environment().from_string(
        importlib.resources.files("lorica.simulations.reports")
        .joinpath("templates/report.html.j2")
        .read_text(encoding="utf-8")
    )
    budget, alike = plan.privacy.epsilon, alike_sites(rounds)
    html = template.render(
        summary=summary,
        plan=plan,
        trained=what_was_trained(plan, summary),
        worth=worth(summary),
        verdict=verdict(summary),
        private=math.isfinite(budget) and _all_finite(summary),
        site_count=len(epsilons(summary)) or plan.simulation.sites,
        rounds=rounds,
        round_count=sum(record.round > 0 for record in rounds),
        comparison=comparison_rows(summary),
        benefit=benefit_rows(summary),
        benefit_said=benefit_sentence(summary),
        headline=headline(summary),
        metrics=shown_metrics(summary, rounds),
        sites=site_rows(summary),
        worst=worst_sentence(summary),
        kept_own=kept_own_said(rounds),
        alike=alike,
        alike_said=alike.sentence if alike else "",
        problems=problems(rounds),
        absent=absent_sites(rounds, summary),
        plan_toml=to_toml(plan),
        plots={
            "score": _markup(plots.score_svg(summary, rounds)),
            "epsilon": _markup(plots.epsilon_svg(summary, budget)),
            "labels": _markup(plots.labels_svg(summary)),
            "alike": alike_map(alike),
        },
    )
    write_atomically(path, html.encode("utf-8", "replace"))


def what_was_trained(plan: RunPlan, summary: Summary) -> str:
    """The run in one sentence."""
    embedded = plan.backbone.source == "embedded"
    backbone = "all-MiniLM-L6-v2" if embedded else plan.backbone.source
    notes = plan.data.train in SYNTHETIC_NOTES
    data = "synthetic clinic notes" if notes else Path(plan.data.train).name
    sites = len(epsilons(summary)) or plan.simulation.sites
    part = (summary.get("trained") or {}).get("what") or what_is_trained(plan)
    part = part.replace("a task head", f"a head for {plan.task.kind}")
    labels = f" of {len(plan.task.labels)} labels" if plan.task.labels else ""
    verb = "was" if part.startswith("a head") else "were"
    count = plan.rounds.count
    stages = ", ".join(f"{rounds} of {stage.value}" for stage, rounds in schedule(plan))
    return (
        f"On top of the frozen {backbone}, {part}{labels} {verb} trained on {data} by {sites} "
        f"virtual {'site' if sites == 1 else 'sites'} ({plan.simulation.partition} split) with "
        f"{plan.aggregation.method}: {count} {'round' if count == 1 else 'rounds'}, of them "
        f"{stages}.{_cut(summary)}"
    )


def _cut(summary: Summary) -> str:
    said = cut_text(summary)
    return f" Of the training texts, {said}." if said else ""


def worth(summary: Summary) -> str:
    """In a sentence, what the federation gains over each site alone and what privacy costs."""
    at = {row.kind: row.score for row in comparison_rows(summary) if row.score is not None}
    better = functools.partial(_better, headline(summary))
    if "federation" not in at:
        return ""
    own = at["federation"]
    parts = []
    if "alone" in at:
        parts.append(f"{better(own - at['alone'])} than each site alone at the same ε")
    if "zero-shot" in at:
        parts.append(f"{better(own - at['zero-shot'])} than zero-shot")
    if "pooled" in at:
        parts.append(f"{better(own - at['pooled'])} than all data pooled without privacy")
    return f"The federation is {'; '.join(parts)}." if parts else ""


def site_rows(summary: Summary) -> list[SiteRow]:
    """One row per site that the summary knows privacy figures of, by name."""
    privacy: dict[str, dict[str, Any]] = summary.get("privacy") or {}
    spent = epsilons(summary)
    alone = (summary.get("baselines") or {}).get("alone") or {}
    took = (summary.get("cost") or {}).get("seconds_by_site") or {}
    return [
        SiteRow(site, privacy.get(site, {}), spent.get(site), alone.get(site), took.get(site))
        for site in sorted(privacy.keys() | spent.keys())
    ]


def problems(rounds: Sequence[RoundRecord]) -> list[Problem]:
    """Every distinct site and reason without an update, in order of appearance."""
    found: dict[tuple[str, str, str], Problem] = {}
    for record in rounds:
        for site in record.sites:
            if site.status != "ok":
                key = (site.site, site.status, site.reason)
                fresh = Problem(site.site, site.status, site.reason, [])
                found.setdefault(key, fresh).rounds.append(record.round)
    return list(found.values())


def absent_sites(rounds: Sequence[RoundRecord], summary: Summary) -> list[str]:
    """Sites that have data but occur in no round: they were not ready before the first."""
    seen = {site.site for record in rounds for site in record.sites}
    return sorted((summary.get("label_counts") or {}).keys() - seen) if seen else []


def span(numbers: Sequence[int]) -> str:
    """Ascending round numbers in few characters: "1–4, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs)


def shown_metrics(summary: Summary, rounds: Sequence[RoundRecord]) -> list[str]:
    """The metrics that the table of rounds has columns for: the headline's first, the loss last,
    between them at most two others."""
    first = headline(summary)
    found = dict.fromkeys(name for record in rounds for name in values_of(record))
    others = [name for name in found if name not in (first, "loss")]
    return [first, *others[:2], "loss"]


def values_of(record: RoundRecord) -> dict[str, float | None]:
    """A round's metrics by name; also of records that hold the best known ones alone."""
    named = {"accuracy": record.accuracy, "macro_f1": record.macro_f1, "loss": record.loss}
    return {**{k: v for k, v in named.items() if v is not None}, **record.metrics}


def _better(metric: str, difference: float) -> str:
    if abs(difference) < 0.0005:
        return "no better or worse"
    size = f"{abs(100 * difference):.1f} points" if is_share(metric) else f"{abs(difference):.3f}"
    return f"{size} {'better' if difference > 0 else 'worse'}"


def _figure_text(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _all_finite(summary: Summary) -> bool:
    return all(map(math.isfinite, epsilons(summary).values()))


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)


def _environment() -> Environment:
    environment = page_environment()
    environment.filters.update(figure=_figure_text, span=span, capfirst=capitalise)
    environment.globals.update(
        bar_share=bar_share,
        values_of=values_of,
        noise_text=noise_text,
        sums_rows=sums_rows,
        epsilon_span=lambda summary: epsilon_span(list(epsilons(summary).values())),
    )
    return environment
