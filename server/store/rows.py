"""Rows of a round: from a RoundRecord to the tables, within a transaction of the store.

The sums that lists show (``Run``, ``SiteRun``) are kept in step: a round that is written again,
or dropped because a run resumes before it, is first taken out of them.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Table, and_, delete, func, insert, select
from sqlalchemy.orm import Session

from lorica.common.display.text import printable
from lorica.server.results.alike import AlikeSites
from lorica.server.results.round import RoundRecord, measured_result
from lorica.server.results.round import SiteRound as SiteRecord
from lorica.server.store.site_rows import (
    add_to_site_runs,
    at_fault,
    finite,
    note_spent,
    problem,
    shown_name,
    shown_reason,
    site_ids,
)
from lorica.server.store.tables import (
    PHASE_BOUNDS,
    Event,
    PhaseTotal,
    Round,
    Run,
    SiteRound,
    SiteRun,
)

_LATEST = ("score", "accuracy", "loss")
_LATEST_AT_SITES = ("site_score", "site_accuracy")
_SITE_ROUNDS: Table = SiteRound.__table__  # type: ignore[assignment]


def write_round(
    session: Session, run: Run, record: RoundRecord, spent: Mapping[str, float], at: float
) -> None:
    """Write one round and bring the run's and its sites' sums up to date."""
    if session.get(Round, (run.id, record.round)) is not None:
        drop_from(session, run, record.round, only=True)
    sites = site_ids(session, run, [entry.site for entry in record.sites], at)
    newest = record.round >= (run.rounds_done or 0)
    # A round may ask a share of the sites; what the others spent before is not given back.
    most = [*spent.values(), *([run.epsilon_spent or 0.0] if newest else [])]
    largest = finite(max(most)) if spent else None
    session.add(_round_row(run, record, largest, at))
    fresh = [_site_row(run, record, entry, sites, spent) for entry in record.sites]
    if fresh:
        session.execute(insert(_SITE_ROUNDS), fresh)
    add_to_site_runs(session, run, fresh, at)
    if newest:
        note_spent(session, run, spent, {entry.site for entry in record.sites})
    session.add_all(
        problem(run, record.round, entry, at) for entry in record.sites if at_fault(entry)
    )
    run.rounds_done = max(run.rounds_done or 0, record.round)
    run.answered = 0
    run.bytes_up = (run.bytes_up or 0) + record.bytes_up
    run.bytes_down = (run.bytes_down or 0) + record.bytes_down
    run.seconds = (run.seconds or 0.0) + record.seconds
    run.problems = (run.problems or 0) + sum(at_fault(entry) for entry in record.sites)
    for name in (*_LATEST, *_LATEST_AT_SITES):
        value = finite(getattr(record, name))
        if value is not None and newest:
            setattr(run, name, value)
    if record.lora_dropped:
        session.flush()
        _take_latest(run, _LATEST_AT_SITES, measured_result(_rounds_of(session, run)))
    _count_phases(session, record.seconds_by_phase)
    if record.metrics or record.site_metrics:
        run.headline = record.headline
    if largest is not None:
        run.epsilon_spent = max(run.epsilon_spent or 0.0, largest)
    session.flush()


def drop_from(session: Session, run: Run, first: int, *, only: bool = False) -> None:
    """Take rounds from ``first`` on (or only that one) out of the store, and out of all sums."""
    which = Round.round == first if only else Round.round >= first
    mine = SiteRound.round == first if only else SiteRound.round >= first
    gone = session.scalar(select(func.count()).where(Round.run_id == run.id, which))
    if not gone:
        return
    session.execute(delete(SiteRound).where(SiteRound.run_id == run.id, mine))
    session.execute(delete(Round).where(Round.run_id == run.id, which))
    where = Event.round == first if only else Event.round >= first
    session.execute(delete(Event).where(Event.run_id == run.id, where, Event.site.is_not(None)))
    _sum_again(session, run)


def _count_phases(session: Session, phases: Mapping[str, float]) -> None:
    for phase, seconds in phases.items():
        row = session.get(PhaseTotal, phase[:32], with_for_update=True)
        if row is None:
            row = PhaseTotal(phase=phase[:32], count=0, seconds=0.0)
            row.buckets = [0] * (len(PHASE_BOUNDS) + 1)
            session.add(row)
        buckets = list(row.buckets)  # a new list, so that the change is seen
        buckets[bisect.bisect_left(PHASE_BOUNDS, seconds)] += 1
        row.buckets, row.count, row.seconds = buckets, row.count + 1, row.seconds + seconds


def _finite_values(values: Mapping[str, float]) -> dict[str, float]:
    return {printable(k): v for k, v in values.items() if finite(v) is not None}


def _round_row(run: Run, record: RoundRecord, largest: float | None, at: float) -> Round:
    return Round(
        run_id=run.id,
        round=record.round,
        ended=at,
        stage=record.stage,
        score=finite(record.score),
        site_score=finite(record.site_score),
        metrics=_finite_values(record.metrics),
        site_metrics=_finite_values(record.site_metrics),
        accuracy=finite(record.accuracy),
        macro_f1=finite(record.macro_f1),
        loss=finite(record.loss),
        site_accuracy=finite(record.site_accuracy),
        site_accuracy_band=finite(record.site_accuracy_band),
        site_loss=finite(record.site_loss),
        by_label=_finite_values(record.site_accuracy_by_label),
        asked=len(record.sites),
        ok=sum(site.status == "ok" for site in record.sites),
        bytes_up=record.bytes_up,
        bytes_down=record.bytes_down,
        seconds=record.seconds,
        phases=record.seconds_by_phase,
        mean_norm=finite(record.mean_norm),
        noise_norm=finite(record.noise_norm),
        signal_to_noise=finite(record.signal_to_noise),
        exact=record.exact,
        epsilon=largest,
        lora_dropped=record.lora_dropped,
        kept_own=record.kept_own,
        alike=alike.as_json() if (alike := AlikeSites.of(record)) else {},
    )


def _site_row(
    run: Run,
    record: RoundRecord,
    entry: SiteRecord,
    sites: Mapping[str, int],
    spent: Mapping[str, float],
) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "round": record.round,
        "site_id": sites[shown_name(entry.site)],
        "status": entry.status,
        "reason": shown_reason(entry.reason),
        "weight": entry.weight,
        "update_norm": finite(entry.update_norm),
        "agreement": finite(entry.agreement),
        "epsilon": finite(spent.get(entry.site)),
        "bytes_up": entry.bytes_up,
        "seconds": entry.seconds,
    }


def _sum_again(session: Session, run: Run) -> None:
    """The run's sums from the rounds that are left; rare, so simple."""
    session.execute(delete(SiteRun).where(SiteRun.run_id == run.id))
    session.expire_all()
    rounds = _rounds_of(session, run)
    run.rounds_done = max((row.round for row in rounds), default=0)
    run.bytes_up = sum(row.bytes_up for row in rounds)
    run.bytes_down = sum(row.bytes_down for row in rounds)
    run.seconds = sum(row.seconds for row in rounds)
    fault = and_(SiteRound.status != "ok", func.coalesce(SiteRound.reason, "").not_like("cut:%"))
    query = select(func.count()).where(SiteRound.run_id == run.id, fault)
    run.problems = session.scalar(query) or 0
    _take_latest(run, _LATEST, rounds)
    _take_latest(run, _LATEST_AT_SITES, measured_result(rounds))
    spent = [row.epsilon for row in rounds if row.epsilon is not None]
    run.epsilon_spent = max(spent, default=None)
    ended = {row.round: row.ended for row in rounds}
    left = select(SiteRound).where(SiteRound.run_id == run.id).order_by(SiteRound.round)
    for number, entries in _by_round(session.scalars(left)):
        add_to_site_runs(session, run, entries, ended.get(number, run.created))
        session.flush()


def _rounds_of(session: Session, run: Run) -> Sequence[Round]:
    query = select(Round).where(Round.run_id == run.id).order_by(Round.round)
    return session.scalars(query).all()


def _take_latest(run: Run, names: Iterable[str], rounds: Sequence[Round]) -> None:
    """Set these of the run's figures to those of the last of the rounds that has them."""
    for name in names:
        values = [getattr(row, name) for row in rounds if getattr(row, name) is not None]
        setattr(run, name, values[-1] if values else None)


def _by_round(entries: Iterable[SiteRound]) -> list[tuple[int, list[dict[str, Any]]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        content = {column.name: getattr(entry, column.name) for column in _SITE_ROUNDS.columns}
        found.setdefault(entry.round, []).append(content)
    return sorted(found.items())
