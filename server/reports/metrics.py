"""The store for Prometheus: rounds, durations by phase, sites by state, bytes, ε, the queue.

Counters are sums over the store: they fall when runs are pruned, which Prometheus takes for a
restart, as it should. Series of single runs exist while a run is live and an hour longer, so that
their number stays small however many runs the store holds. ε is what plans and sites declare.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from lorica.common.version import __version__
from lorica.server.reports.alerts import alerts
from lorica.server.store.queries import Queries
from lorica.server.store.tables import (
    LIVE,
    PHASE_BOUNDS,
    STATUSES,
    PhaseTotal,
    Run,
    Site,
    SiteRun,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
SHOWN_SECONDS = 3600.0
"""For so long after its end a run still has series of its own."""

_ALERT_KINDS = (
    "site-silent",
    "update-refused",
    "score-falling",
    "budget-low",
    "budget-exceeded",
    "run-failed",
    "run-interrupted",
)


class StoreCollector(Collector):
    """Reads the store at every scrape."""

    def __init__(self, store: Queries) -> None:
        """``store``: the run store."""
        self._store = store

    def collect(self) -> Iterable[Metric]:
        """All metrics as they are now."""
        now = time.time()
        yield InfoMetricFamily("lorica", "This installation.", value={"version": __version__})
        with self._store.reading() as session:
            yield from _totals(session)
            yield _phases(session)
            yield from _runs(session, now)
            yield from _sites(session)
        yield self._alerts(now)

    def _alerts(self, now: float) -> Metric:
        gauge = GaugeMetricFamily(
            "lorica_alerts",
            "Things to look at, by kind; see the monitor's page of alerts.",
            labels=["kind", "severity"],
        )
        counts = {(kind, level): 0 for kind in _ALERT_KINDS for level in ("warning", "critical")}
        for alert in alerts(self._store, now):
            counts[alert.kind, alert.severity] += 1
        for (kind, severity), count in counts.items():
            gauge.add_metric([kind, severity], count)
        return gauge


def prometheus_text(store: Queries) -> bytes:
    """The store's metrics in Prometheus' text format; its type is :data:`CONTENT_TYPE`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StoreCollector(store))
    return generate_latest(registry)


def _totals(session: Session) -> Iterator[Metric]:
    runs = GaugeMetricFamily("lorica_runs", "Runs in the store, by status.", labels=["status"])
    counted: dict[str, int] = {
        row[0]: row[1]
        for row in session.execute(select(Run.status, func.count()).group_by(Run.status))
    }
    for status in STATUSES:
        runs.add_metric([status], counted.get(status, 0))
    yield runs
    yield GaugeMetricFamily(
        "lorica_queue_runs", "Runs that wait to start.", value=counted.get("queued", 0)
    )
    sums = select(
        func.coalesce(func.sum(Run.rounds_done), 0),
        func.coalesce(func.sum(Run.bytes_up), 0),
        func.coalesce(func.sum(Run.bytes_down), 0),
    )
    rounds, up, down = session.execute(sums).one()
    yield CounterMetricFamily("lorica_rounds", "Rounds of all runs.", value=float(rounds))
    bytes_ = CounterMetricFamily(
        "lorica_transferred_bytes",
        "Bytes of updates received and adapters sent.",
        labels=["direction"],
    )
    bytes_.add_metric(["up"], float(up))
    bytes_.add_metric(["down"], float(down))
    yield bytes_
    states = ("ok", "refused", "failed", "late")
    totals = select(*(func.coalesce(func.sum(getattr(SiteRun, name)), 0) for name in states))
    answers = CounterMetricFamily(
        "lorica_site_rounds", "Answers of sites to rounds, by status.", labels=["status"]
    )
    for name, value in zip(states, session.execute(totals).one(), strict=True):
        answers.add_metric([name], float(value))
    yield answers


def _phases(session: Session) -> Metric:
    histogram = HistogramMetricFamily(
        "lorica_round_phase_seconds", "How long the phases of rounds took.", labels=["phase"]
    )
    for row in session.scalars(select(PhaseTotal).order_by(PhaseTotal.phase)):
        seen, buckets = 0, []
        for bound, count in zip((*PHASE_BOUNDS, float("inf")), row.buckets, strict=True):
            seen += count
            buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(seen)))
        histogram.add_metric([row.phase], buckets, sum_value=row.seconds)
    return histogram


def _runs(session: Session, now: float) -> Iterator[Metric]:
    shown = or_(Run.status.in_(LIVE), Run.ended >= now - SHOWN_SECONDS)
    runs = session.scalars(select(Run).where(shown, Run.kind != "baseline")).all()
    yield _by_run("lorica_run_round", "The run's last whole round.", runs, "rounds_done")
    yield _by_run("lorica_run_rounds_planned", "Rounds that its plan has.", runs, "rounds")
    yield _by_run("lorica_run_score", "The task's headline metric, last round.", runs, "score")
    yield _by_run("lorica_run_loss", "Loss of the last round.", runs, "loss")
    yield _by_run(
        "lorica_run_epsilon_spent",
        "Largest epsilon that a site has spent, as the plan declares.",
        runs,
        "epsilon_spent",
    )
    yield _by_run("lorica_run_epsilon_budget", "Epsilon that its plan allows.", runs, "epsilon")
    yield _by_run(
        "lorica_run_heartbeat_timestamp_seconds",
        "When the run's process gave its last sign of life.",
        [run for run in runs if run.live],
        "heartbeat",
    )
    sites = GaugeMetricFamily(
        "lorica_run_sites", "Sites of a run by their last answer.", labels=["run", "state"]
    )
    silent = GaugeMetricFamily(
        "lorica_run_site_unanswered_rounds",
        "Rounds in a row in which a site of a live run gave no update.",
        labels=["run", "site"],
    )
    names = {run.id: run for run in runs}
    by_state = (
        select(SiteRun.run_id, SiteRun.last_status, func.count())
        .where(SiteRun.run_id.in_(names), SiteRun.last_status != "")
        .group_by(SiteRun.run_id, SiteRun.last_status)
    )
    for key, state, count in session.execute(by_state):
        sites.add_metric([names[key].run_id, state], count)
    query = (
        select(SiteRun.run_id, Site.name, SiteRun.unanswered)
        .join(Site, Site.id == SiteRun.site_id)
        .where(SiteRun.run_id.in_([run.id for run in runs if run.live]), SiteRun.unanswered > 0)
    )
    for key, site, count in session.execute(query):
        silent.add_metric([names[key].run_id, site], count)
    yield sites
    yield silent


def _by_run(name: str, text: str, runs: Iterable[Run], column: str) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=["run"])
    for run in runs:
        value: Any = getattr(run, column)
        if value is not None:
            gauge.add_metric([run.run_id], float(value))
    return gauge


def _sites(session: Session) -> Iterator[Metric]:
    seen = GaugeMetricFamily(
        "lorica_site_last_seen_timestamp_seconds", "When a site last answered.", labels=["site"]
    )
    budget = GaugeMetricFamily(
        "lorica_site_epsilon_budget", "A site's lifetime budget, as it declares.", labels=["site"]
    )
    left = GaugeMetricFamily(
        "lorica_site_epsilon_left", "What is left of it, as the site declares.", labels=["site"]
    )
    for site in session.scalars(select(Site).where(Site.virtual.is_(False)).order_by(Site.name)):
        seen.add_metric([site.name], site.last_seen)
        if site.budget_epsilon is not None:
            budget.add_metric([site.name], site.budget_epsilon)
        if site.budget_left is not None:
            left.add_metric([site.name], site.budget_left)
    yield from (seen, budget, left)
