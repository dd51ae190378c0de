"""Rows of a round: from a RoundRecord to the tables, within a transaction of the store.

The sums that lists show (``Run``, ``SiteRun``) are kept in step: a round that is written again,
or dropped because a run resumes before it, is first taken out of them.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Table, and_, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from lorica.common.text import printable
from lorica.server.records import RoundRecord, measured_result
from lorica.server.records import SiteRound as SiteRecord
from lorica.server.runs.models import (
    PHASE_BOUNDS,
    Event,
    PhaseTotal,
    Round,
    Run,
    Site,
    SiteRound,
    SiteRun,
)

_MOST_NAME = 200
_MOST_REASON = 500
_CHUNK = 500
_LATEST = ("score", "accuracy", "loss")
_LATEST_AT_SITES = ("site_score", "site_accuracy")
_SITE_ROUNDS: Table = SiteRound.__table__  # type: ignore[assignment]
_VIRTUAL = ("simulation", "baseline", "sweep-run")


def write_round(
    session: Session, run: Run, record: RoundRecord, spent: Mapping[str, float], at: float
) -> None:
    """Write one round and bring the run's and its sites' sums up to date."""
    if session.get(Round, (run.id, record.round)) is not None:
        drop_from(session, run, record.round, only=True)
    sites = _site_ids(session, run, [entry.site for entry in record.sites], at)
    newest = record.round >= (run.rounds_done or 0)
    # A round may ask a share of the sites; what the others spent before is not given back.
    most = [*spent.values(), *([run.epsilon_spent or 0.0] if newest else [])]
    largest = finite(max(most)) if spent else None
    session.add(_round_row(run, record, largest, at))
    fresh = [_site_row(run, record, entry, sites, spent) for entry in record.sites]
    if fresh:
        session.execute(insert(_SITE_ROUNDS), fresh)
    _add_to_site_runs(session, run, fresh, at)
    if newest:
        _note_spent(session, run, spent, {entry.site for entry in record.sites})
    session.add_all(
        _problem(run, record.round, entry, at) for entry in record.sites if at_fault(entry)
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


def meet_sites(session: Session, run: Run, sites: Sequence[SiteRecord], at: float) -> None:
    """Note the sites that answered whether they take part, and those that will not."""
    ids = _site_ids(session, run, [site.site for site in sites], at)
    for site in sites:
        key = (run.id, ids[_shown(site.site)])
        known = session.get(SiteRun, key)
        if known is None:
            known = SiteRun(run_id=run.id, site_id=key[1], weight=site.weight, last_seen=at)
            session.add(known)
        known.last_status, known.last_reason = site.status, _reason(site.reason) or ""
        values: dict[str, Any] = {"weight": site.weight} if site.weight else {}
        values |= {"version": site.version} if site.version else {}
        if site.budget is not None:
            values["budget_epsilon"], values["budget_left"] = site.budget
        if site.status != "late":
            values["last_seen"] = known.last_seen = at
        if values:
            session.execute(update(Site).where(Site.id == key[1]).values(values))
        if site.status != "ok":
            session.add(_problem(run, 0, site, at))


def note_site(session: Session, name: str, values: Mapping[str, Any], at: float) -> None:
    """Set what a real site says of itself."""
    shown = _shown(name)
    _add_missing(session, False, [shown], at)
    where = (Site.virtual.is_(False), Site.name == shown)
    session.execute(update(Site).where(*where).values({**values, "last_seen": at}))


def at_fault(entry: SiteRecord) -> bool:
    """Whether a site gave no update though it was waited for."""
    return entry.status != "ok" and not _cut(entry.status, entry.reason)


def _cut(status: str, reason: str | None) -> bool:
    """Whether a site was not waited for, since enough others had answered."""
    return status == "late" and (reason or "").startswith("cut:")


def finite(value: float | None) -> float | None:
    """The value, None for what a database or a curve cannot hold."""
    return None if value is None or not math.isfinite(value) else float(value)


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
        "site_id": sites[_shown(entry.site)],
        "status": entry.status,
        "reason": _reason(entry.reason),
        "weight": entry.weight,
        "update_norm": finite(entry.update_norm),
        "agreement": finite(entry.agreement),
        "epsilon": finite(spent.get(entry.site)),
        "bytes_up": entry.bytes_up,
        "seconds": entry.seconds,
    }


def _problem(run: Run, round: int, entry: SiteRecord, at: float) -> Event:
    reason = _reason(entry.reason) or "no reason given"
    code = reason[:7] if reason.startswith("LOR-") else reason[1:8]
    return Event(
        run_id=run.id,
        at=at,
        level="error" if entry.status == "failed" else "warning",
        code=code if code.startswith("LOR-") else "",
        text=f"{entry.status}: {reason}",
        round=round,
        site=_shown(entry.site),
    )


def _site_ids(session: Session, run: Run, names: Iterable[str], at: float) -> dict[str, int]:
    """Ids of the sites of these names, new ones entered; all of them have been seen now."""
    shown, virtual = sorted({_shown(name) for name in names}), run.kind in _VIRTUAL
    _add_missing(session, virtual, shown, at)
    found: dict[str, int] = {}
    for start in range(0, len(shown), _CHUNK):
        part = shown[start : start + _CHUNK]
        where = (Site.virtual.is_(virtual), Site.name.in_(part))
        found |= {
            row[0]: row[1] for row in session.execute(select(Site.name, Site.id).where(*where))
        }
    return found


def _add_missing(session: Session, virtual: bool, names: Sequence[str], at: float) -> None:
    known: set[str] = set()
    for start in range(0, len(names), _CHUNK):
        part = names[start : start + _CHUNK]
        where = (Site.virtual.is_(virtual), Site.name.in_(part))
        known |= set(session.scalars(select(Site.name).where(*where)))
    missing = [name for name in names if name not in known]
    if not missing:
        return
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    session.execute(
        dialect.insert(Site).on_conflict_do_nothing(),
        [{"name": n, "virtual": virtual, "first_seen": at, "last_seen": at} for n in missing],
    )


def _add_to_site_runs(
    session: Session, run: Run, fresh: Sequence[Mapping[str, Any]], at: float
) -> None:
    if not fresh:
        return
    known = {
        row.site_id: row for row in session.scalars(select(SiteRun).where(SiteRun.run_id == run.id))
    }
    seen = []
    for entry in fresh:
        row = known.get(entry["site_id"])
        if row is None:
            row = SiteRun(run_id=run.id, site_id=entry["site_id"], last_seen=at)
            for name in ("ok", "refused", "failed", "late", "unanswered", "bytes_up"):
                setattr(row, name, 0)
            row.seconds = row.agreement_sum = 0.0
            row.agreement_count = 0
            session.add(row)
            known[entry["site_id"]] = row
        status = entry["status"]
        setattr(row, status, (getattr(row, status) or 0) + 1)
        if status != "late":
            row.last_seen = max(row.last_seen or 0.0, at)
            seen.append(entry["site_id"])
        newest = entry["round"] >= (row.last_round or 0)
        if newest:
            if status == "ok":
                row.unanswered = 0
            elif not _cut(status, entry["reason"]):
                row.unanswered = (row.unanswered or 0) + 1
            row.last_round, row.last_status = entry["round"], status
            row.last_reason = entry["reason"] or ""
        row.weight = entry["weight"] or row.weight or 0
        row.bytes_up = (row.bytes_up or 0) + entry["bytes_up"]
        row.seconds = (row.seconds or 0.0) + entry["seconds"]
        if entry["agreement"] is not None:
            row.agreement_sum = (row.agreement_sum or 0.0) + entry["agreement"]
            row.agreement_count = (row.agreement_count or 0) + 1
        if entry["epsilon"] is not None and newest:
            row.epsilon = entry["epsilon"]
    for start in range(0, len(seen), _CHUNK):
        part = seen[start : start + _CHUNK]
        later = update(Site).where(Site.id.in_(part), Site.last_seen < at).values(last_seen=at)
        session.execute(later, execution_options={"synchronize_session": False})


def _note_spent(
    session: Session, run: Run, spent: Mapping[str, float], but: Collection[str]
) -> None:
    """ε of the run's other sites: an evaluation charges those that the round did not ask, too."""
    others = {_shown(site): finite(value) for site, value in spent.items() if site not in but}
    if not others:
        return
    query = select(SiteRun, Site.name).join(Site, Site.id == SiteRun.site_id)
    for sums, name in session.execute(query.where(SiteRun.run_id == run.id)):
        if others.get(name) is not None:
            sums.epsilon = others[name]


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
        _add_to_site_runs(session, run, entries, ended.get(number, run.created))
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


def _shown(name: str) -> str:
    return printable(name)[:_MOST_NAME]


def _reason(text: str) -> str | None:
    return printable(text)[:_MOST_REASON] or None
