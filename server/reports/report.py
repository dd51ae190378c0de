"""A run's report for those who decide: one printable page that needs nothing but itself.

Names of sites and labels come from others: everything is escaped, and the page's own content
policy forbids scripts and anything from outside.
"""

from __future__ import annotations

import importlib.resources
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorica.common.display.pages import page_environment
from lorica.common.display.text import printable
from lorica.common.display.wording import percent
from lorica.common.machine.files import write_atomically
from lorica.common.plan.stages import Stage
from lorica.common.plan.subject import SYNTHETIC_NOTES
from lorica.common.version import __version__
from lorica.server.reports.charts import line_chart
from lorica.server.reports.map import alike_map
from lorica.server.results.alike import likeness
from lorica.server.results.kept_own import kept_own_said
from lorica.server.results.round import measured_result
from lorica.server.store.queries import Queries, plan_values
from lorica.server.store.tables import Round, Run

_MOST_POINTS = 200
_WORSE = 0.005  # differences below are within what one test set tells


@dataclass(frozen=True)
class Change:
    """How one site or label fares, before and after."""

    name: str
    before: float
    after: float
    what: str
    """What "before" is."""

    @property
    def worse(self) -> bool:
        """Whether it got worse by more than half a point."""
        return self.after < self.before - _WORSE


def write_report(store: Queries, run: Run, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        LoricaError: LOR-601 disk full, LOR-602 refused by the system.
    """
    write_atomically(path, report_html(store, run).encode("utf-8", "replace"))


def report_html(store: Queries, run: Run) -> str:
    """The page's text.

    Args:
        store: holds the run.
        run: which.
    """
    full = store.run(run.run_id)
    rounds = store.rounds(run.run_id)
    sites = store.run_sites(run.run_id)
    plan = plan_values(full)
    curves = store.curves(run.run_id, ("score", "site_score", "epsilon"), most=_MOST_POINTS)
    template = page_environment().from_string(
        importlib.resources.files("lorica.server.reports")
        .joinpath("templates/decision.html.j2")
        .read_text(encoding="utf-8")
    )
    by_label, by_site = label_changes(rounds), site_changes(full)
    return template.render(
        run=full,
        what=what_was_trained(full, plan, rounds),
        private=full.epsilon is not None,
        seeded=full.kind != "federation" and plan.get("simulation.noise") == "seeded",
        meaning=meaning(full),
        sites=sites,
        records=sum(sums.weight for _, sums in sites),
        silent=[site.name for site, sums in sites if not sums.weight],
        quality=quality_rows(full, rounds),
        kept_own=kept_own_said(rounds),
        alike=likeness(rounds),
        map=alike_map(likeness(rounds)),
        score_chart=line_chart(
            _named(curves), f"{full.headline} by round", percent=_shares(curves)
        ),
        epsilon_chart=line_chart({"ε spent, largest over sites": curves["epsilon"]}, "ε by round"),
        by_label=by_label,
        by_site=by_site,
        worse=[change for change in by_site + by_label if change.worse],
        problems=[(site, sums) for site, sums in sites if sums.refused + sums.failed + sums.late],
        events=store.events(run.run_id, level="warning", limit=20),
        hours=(full.seconds or 0) / 3600,
        phases=phase_seconds(rounds),
        inexact=sum(row.exact is False for row in rounds),
        plan=full.plan,
        made=time.strftime("%Y-%m-%d %H:%M"),
        when=lambda at: time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if at else "–",
        lorica=__version__,
    )


_ADAPTING = (Stage.LORA.value, Stage.LOCAL.value)


def what_was_trained(run: Run, plan: Mapping[str, Any], rounds: Sequence[Round]) -> str:
    """The run in one sentence: what its rounds trained, not what its plan might have."""
    embedded = run.backbone == "embedded"
    backbone = "all-MiniLM-L6-v2" if embedded else Path(run.backbone).name or run.backbone
    part = "a task head"
    adapting = [row for row in measured_result(rounds) if row.stage in _ADAPTING]
    if not rounds or adapting:
        many = f" (in {len(adapting)} rounds)" if adapting else ""
        if plan.get("adapter.kind") == "lora":
            part = f"LoRA adapters of rank {plan.get('adapter.rank')}{many} and a task head"
        elif plan.get("adapter.kind") == "bitfit":
            part = f"biases{many} and a task head"
    elif plan.get("adapter.kind") != "head":
        part = "a task head alone"
    data = str(plan.get("data.train", ""))
    source = "synthetic clinic notes" if data in SYNTHETIC_NOTES else "the sites' own records"
    labels = plan.get("task.labels") or []
    aim = f"{run.task}, {len(labels)} labels" if labels else run.task
    virtual = "" if run.kind == "federation" else " virtual"
    return (
        f"On top of the frozen model {printable(backbone)}, {part} ({aim}) were trained on "
        f"{source} at {run.sites}{virtual} {'site' if run.sites == 1 else 'sites'}, with "
        f"{run.method}, in {run.rounds_done} of {run.rounds} rounds."
    )


def meaning(run: Run) -> str:
    """What the guarantee says, for people who do not read ε every day."""
    if run.epsilon is None:
        return (
            "This run had no privacy: what it learned about single records can be read from the "
            "model. Treat the model as confidential as the data."
        )
    unit = "record" if run.unit == "record" else f"{printable(run.unit)} (with all its records)"
    odds = math.exp(min(run.epsilon, 700))
    factor = f"{odds:,.0f}" if odds >= 10 else f"{odds:.1f}"
    return (
        f"Whatever an attacker sees of the run, the odds of guessing rightly whether one {unit} "
        f"was among a site's data change by at most a factor of {factor} (e^ε, with ε = "
        f"{run.epsilon:g}), but for a probability of δ = {run.delta:g}. Each site enforces this "
        "itself, on its own machine, before anything leaves it; the coordinator need not be "
        "trusted for it."
    )


def quality_rows(run: Run, rounds: Sequence[Round]) -> list[tuple[str, str, str]]:
    """(metric, value, measured on), of the last rounds that have them of the result; then what to
    compare."""
    rows = []
    for where, column in (
        ("the coordinator's test data", "metrics"),
        ("the sites' held-out records, noised", "site_metrics"),
    ):
        values: dict[str, float]
        of = measured_result(rounds) if column == "site_metrics" else rounds
        values = next((getattr(r, column) for r in reversed(of) if getattr(r, column)), {})
        rows += [(name, _figure(name, value), where) for name, value in values.items()]
    if not rows and run.accuracy is not None:
        rows.append(("accuracy", percent(run.accuracy), "the coordinator's test data"))
    baselines = run.summary.get("baselines") or {}
    for key, text in (
        ("zero_shot", "before training, from the labels' names alone"),
        ("alone_mean", "mean of the sites, each alone"),
        ("pooled_without_privacy", "all data in one place, without privacy"),
    ):
        if isinstance(baselines.get(key), int | float):
            rows.append(
                (f"{run.headline}, to compare", _figure(run.headline, baselines[key]), text)
            )
    return rows


def label_changes(rounds: Sequence[Round]) -> list[Change]:
    """Every label's figure by the sites' noised counts, first against last."""
    known = [row for row in measured_result(rounds) if row.by_label]
    if len(known) < 2:
        return []
    first, last = known[0], known[-1]
    what = f"after round {first.round}"
    found = [
        Change(label, before, last.by_label[label], what)
        for label, before in first.by_label.items()
        if label in last.by_label
    ]
    return sorted(found, key=lambda change: change.after - change.before)


def site_changes(run: Run) -> list[Change]:
    """Every site with the federation against without: known of simulations alone."""
    alone = (run.summary.get("baselines") or {}).get("alone") or {}
    own = run.summary.get("score_at_sites") or {}
    score = run.summary.get("score")
    found = [
        Change(site, before, after, "alone, at the same ε")
        for site, before in alone.items()
        if isinstance(after := own.get(site, score), int | float)
        and isinstance(before, int | float)
    ]
    return sorted(found, key=lambda change: change.after - change.before)


def phase_seconds(rounds: Sequence[Round]) -> list[tuple[str, float]]:
    """Seconds of every phase over all rounds, longest first."""
    total: dict[str, float] = {}
    for row in rounds:
        for phase, seconds in (row.phases or {}).items():
            total[phase] = total.get(phase, 0.0) + seconds
    return sorted(total.items(), key=lambda item: -item[1])


def _named(curves: Mapping[str, Any]) -> dict[str, Any]:
    names = {"score": "on the coordinator's test data", "site_score": "by the sites' noised counts"}
    return {text: curves[name] for name, text in names.items() if curves[name]}


def _shares(curves: Mapping[str, Any]) -> bool:
    values = [value for name in ("score", "site_score") for _, value in curves[name]]
    return bool(values) and all(0 <= value <= 1 for value in values)


def _figure(name: str, value: float) -> str:
    return f"{value:.4f}" if name == "loss" or not 0 <= value <= 1 else percent(value)
