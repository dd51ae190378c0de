"""Rows of the sites: who they are, what they did in a run, and what went wrong with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from lorica.common.display.text import printable
from lorica.server.results.round import SiteRound as SiteRecord
from lorica.server.store.tables import Event, Run, Site, SiteRun

_MOST_NAME = 200
_MOST_REASON = 500
_CHUNK = 500
_VIRTUAL = ("simulation", "baseline", "sweep-run")


def meet_sites(session: Session, run: Run, sites: Sequence[SiteRecord], at: float) -> None:
    """Note the sites that answered whether they take part, and those that will not."""
    ids = site_ids(session, run, [site.site for site in sites], at)
    for site in sites:
        key = (run.id, ids[shown_name(site.site)])
        known = session.get(SiteRun, key)
        if known is None:
            known = SiteRun(run_id=run.id, site_id=key[1], weight=site.weight, last_seen=at)
            session.add(known)
        known.last_status, known.last_reason = site.status, shown_reason(site.reason) or ""
        values: dict[str, Any] = {"weight": site.weight} if site.weight else {}
        values |= {"version": site.version} if site.version else {}
        if site.budget is not None:
            values["budget_epsilon"], values["budget_left"] = site.budget
        if site.status != "late":
            values["last_seen"] = known.last_seen = at
        if values:
            session.execute(update(Site).where(Site.id == key[1]).values(values))
        if site.status != "ok":
            session.add(problem(run, 0, site, at))


def note_site(session: Session, name: str, values: Mapping[str, Any], at: float) -> None:
    """Set what a real site says of itself."""
    shown = shown_name(name)
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


def problem(run: Run, round: int, entry: SiteRecord, at: float) -> Event:
    """The log line of a site that gave no update, or does not take part."""
    reason = shown_reason(entry.reason) or "no reason given"
    code = reason[:7] if reason.startswith("LOR-") else reason[1:8]
    return Event(
        run_id=run.id,
        at=at,
        level="error" if entry.status == "failed" else "warning",
        code=code if code.startswith("LOR-") else "",
        text=f"{entry.status}: {reason}",
        round=round,
        site=shown_name(entry.site),
    )


def site_ids(session: Session, run: Run, names: Iterable[str], at: float) -> dict[str, int]:
    """Ids of the sites of these names, new ones entered; all of them have been seen now."""
    shown, virtual = sorted({shown_name(name) for name in names}), run.kind in _VIRTUAL
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


def add_to_site_runs(
    session: Session, run: Run, fresh: Sequence[Mapping[str, Any]], at: float
) -> None:
    """Add a round's rows of sites to the run's sums by site."""
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


def note_spent(
    session: Session, run: Run, spent: Mapping[str, float], but: Collection[str]
) -> None:
    """ε of the run's other sites: an evaluation charges those that the round did not ask, too."""
    others = {shown_name(site): finite(value) for site, value in spent.items() if site not in but}
    if not others:
        return
    query = select(SiteRun, Site.name).join(Site, Site.id == SiteRun.site_id)
    for sums, name in session.execute(query.where(SiteRun.run_id == run.id)):
        if others.get(name) is not None:
            sums.epsilon = others[name]


def shown_name(name: str) -> str:
    """A site's name as the store keeps it."""
    return printable(name)[:_MOST_NAME]


def shown_reason(text: str) -> str | None:
    """A site's reason as the store keeps it; None when it gave none."""
    return printable(text)[:_MOST_REASON] or None
