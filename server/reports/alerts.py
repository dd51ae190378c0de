"""What an operator should look at: a pure function of what the store holds now."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from lorica.common.display.wording import epsilon_text
from lorica.server.store.queries import Queries
from lorica.server.store.tables import LIVE, Round, Run, Site, SiteRun

Kind = Literal[
    "site-silent",
    "update-refused",
    "score-falling",
    "budget-low",
    "budget-exceeded",
    "run-failed",
    "run-interrupted",
]
Severity = Literal["warning", "critical"]

RECENT_SECONDS = 86_400.0
"""For so long after its end a run still alerts."""
SILENT_ROUNDS = 2
"""Rounds in a row without an answer after which a site is silent."""
VERY_SILENT_ROUNDS = 5
"""The same, critical."""
FALL = 0.05
"""The score of the last rounds below the best so far, from which it counts as falling."""
BUDGET_SHARE = 0.1
"""A site whose lifetime budget is used up but for this share is near its end."""

_LAST = 3
_MOST_RUNS = 100


@dataclass(frozen=True)
class Alert:
    """One thing to look at."""

    kind: Kind
    severity: Severity
    text: str
    """One sentence; holds names from others, to be shown escaped."""
    at: float
    """When it began or was seen last."""
    run_id: str = ""
    site: str = ""


def alerts(store: Queries, now: float | None = None) -> list[Alert]:
    """Everything to look at, critical first, then newest first.

    Runs that have a process, and those that ended within a day, are looked at:

    - site-silent: a site of a live run gave no update in two rounds in a row, for it was late or
      failed; critical from five rounds;
    - update-refused: the last word of a site in the run is a refusal, or its update was refused;
    - score-falling: the mean score of the last three rounds lies 0.05 or more below the best;
    - budget-exceeded: a site's ε, as declared, is above the run's budget;
    - budget-low: a site declared that at most a tenth of its lifetime budget is left;
    - run-failed, run-interrupted.

    Args:
        store: the run store.
        now: seconds since 1970; now when omitted.
    """
    at = time.time() if now is None else now
    with store.reading() as session:
        recent = or_(Run.status.in_(LIVE), Run.ended >= at - RECENT_SECONDS)
        query = select(Run).where(recent, Run.kind != "baseline")
        runs = session.scalars(query.order_by(Run.created.desc()).limit(_MOST_RUNS)).all()
        by_key = {run.id: run for run in runs}
        found = [alert for run in runs for alert in _of_run(run)]
        found += _of_sites(session, by_key)
        found += _falling(session, by_key)
        found += _budgets(session)
    return sorted(found, key=lambda alert: (alert.severity != "critical", -alert.at))


def _of_run(run: Run) -> list[Alert]:
    ended = run.ended or run.created
    if run.status == "failed":
        why = f"{run.error_code}: {run.error}" if run.error_code else run.error
        text = f"Run {run.run_id} failed: {why or 'no reason given'}"
        return [Alert("run-failed", "critical", text, ended, run.run_id)]
    if run.status == "interrupted":
        text = f"Run {run.run_id} was interrupted after round {run.rounds_done} of {run.rounds}."
        return [Alert("run-interrupted", "critical", text, ended, run.run_id)]
    return []


def _of_sites(session: Session, runs: dict[int, Run]) -> list[Alert]:
    troubled = or_(
        SiteRun.unanswered >= SILENT_ROUNDS,
        SiteRun.last_status == "refused",
        SiteRun.last_reason.contains("LOR-502"),
        SiteRun.epsilon.is_not(None),
    )
    query = select(SiteRun, Site.name).join(Site, Site.id == SiteRun.site_id)
    found = []
    for sums, name in session.execute(query.where(SiteRun.run_id.in_(runs), troubled)):
        run = runs[sums.run_id]
        refused = sums.last_status == "refused" or "LOR-502" in sums.last_reason
        if refused:
            text = f"{name} in run {run.run_id}, round {sums.last_round}: {sums.last_reason}"
            found.append(Alert("update-refused", "warning", text, sums.last_seen, run.run_id, name))
        elif run.live and sums.unanswered >= SILENT_ROUNDS:
            severe = sums.unanswered >= VERY_SILENT_ROUNDS
            text = (
                f"{name} gave no update in the last {sums.unanswered} rounds of run {run.run_id}: "
                f"{sums.last_reason or sums.last_status}"
            )
            severity: Severity = "critical" if severe else "warning"
            found.append(Alert("site-silent", severity, text, sums.last_seen, run.run_id, name))
        budget = run.epsilon
        if budget is not None and (sums.epsilon or 0.0) > budget * (1 + 1e-6):
            text = (
                f"{name} has spent ε = {epsilon_text(sums.epsilon, 3)} in run {run.run_id}, above "
                f"its budget of {budget:g}"
            )
            at = sums.last_seen
            found.append(Alert("budget-exceeded", "critical", text, at, run.run_id, name))
    return found


def _falling(session: Session, runs: dict[int, Run]) -> list[Alert]:
    score = func.coalesce(Round.score, Round.site_score)
    query = select(Round.run_id, score, Round.site_accuracy_band, Round.ended)
    query = query.where(Round.run_id.in_(runs), score.is_not(None))
    points: dict[int, list[tuple[float, float, float]]] = {}
    for key, value, band, ended in session.execute(query.order_by(Round.run_id, Round.round)):
        points.setdefault(key, []).append((value, band or 0.0, ended))
    found = []
    for key, values in points.items():
        if len(values) <= _LAST:
            continue
        last = values[-_LAST:]
        best = max(value for value, _, _ in values[:-_LAST])
        mean = sum(value for value, _, _ in last) / _LAST
        if best - mean >= max(FALL, 2 * max(band for _, band, _ in last)):
            run = runs[key]
            text = (
                f"The {run.headline} of run {run.run_id} fell from {best:.3f} to {mean:.3f}, the "
                f"mean of its last {_LAST} evaluations."
            )
            found.append(Alert("score-falling", "warning", text, last[-1][2], run.run_id))
    return found


def _budgets(session: Session) -> list[Alert]:
    low = (Site.budget_epsilon > 0, Site.budget_left <= BUDGET_SHARE * Site.budget_epsilon)
    found = []
    for site in session.scalars(select(Site).where(*low)):
        left = site.budget_left or 0.0
        text = f"{site.name} has ε = {left:.3g} of {site.budget_epsilon:g} left, as it declares."
        severity: Severity = "critical" if left <= 0 else "warning"
        found.append(Alert("budget-low", severity, text, site.last_seen, site=site.name))
    return found
