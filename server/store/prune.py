"""Retention: which runs go, what goes with them, and their going."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from lorica.server.store.artefacts import file_of
from lorica.server.store.store import RunStore
from lorica.server.store.tables import OVER, Artefact, Event, Round, Run, SiteRound

DAY_SECONDS = 86_400.0
_CHUNK = 500


@dataclass(frozen=True)
class Pruning:
    """What is to go."""

    runs: list[Run]
    """With their children, oldest first."""
    rounds: int
    site_rounds: int
    events: int
    files: int
    bytes: int
    """Of those files."""


def plan_pruning(
    store: RunStore,
    *,
    older_than_days: float | None = None,
    keep: int | None = None,
    status: Sequence[str] | None = None,
    now: float | None = None,
) -> Pruning:
    """Work out what is to go; nothing is deleted yet.

    A run goes when all conditions that are given hold for it and it is over; its baselines, or a
    sweep's runs, go with it, and it stays while one of them is not over. Nothing else is counted
    by ``keep``.

    Args:
        store: the run store.
        older_than_days: created so long ago.
        keep: not among so many newest ones.
        status: one of these.
        now: seconds since 1970; now when omitted.
    """
    at = time.time() if now is None else now
    with store.reading() as session:
        tops = session.scalars(
            select(Run).where(Run.parent_id.is_(None)).order_by(Run.created.desc(), Run.id.desc())
        ).all()
        chosen = []
        for place, run in enumerate(tops):
            if run.status not in OVER or (status and run.status not in status):
                continue
            if keep is not None and place < keep:
                continue
            if older_than_days is not None and run.created > at - older_than_days * DAY_SECONDS:
                continue
            chosen.append(run)
        families = [[run, *_descendants(session, run)] for run in chosen]
        going = [
            run for family in families if all(r.status in OVER for r in family) for run in family
        ]
        keys = [run.id for run in going]
        counts = [
            sum(
                session.scalar(select(func.count()).where(table.run_id.in_(part))) or 0
                for part in _parts(keys)
            )
            for table in (Round, SiteRound, Event, Artefact)
        ]
        size = sum(
            session.scalar(select(func.sum(Artefact.bytes)).where(Artefact.run_id.in_(part))) or 0
            for part in _parts(keys)
        )
    ordered = sorted(going, key=lambda run: (run.created, run.id))
    return Pruning(ordered, counts[0], counts[1], counts[2], counts[3], int(size))


def prune(store: RunStore, pruning: Pruning, *, files: bool = False) -> int:
    """Delete what was planned; a run that has been taken up again meanwhile stays.

    Files go first: if the process dies in between, the rows that say where they were remain. Only
    files that are entered as artefacts are touched, then folders that became empty.

    Returns:
        The number of files deleted.
    """
    gone = 0
    for run in pruning.runs:
        with store.reading() as session:
            status = session.scalar(select(Run.status).where(Run.id == run.id))
        if status not in OVER:
            continue
        if files:
            gone += _delete_files(store, run)
        with store.writing() as session:
            session.execute(delete(SiteRound).where(SiteRound.run_id == run.id))
            session.execute(delete(Run).where(Run.id == run.id, Run.status.in_(OVER)))
    return gone


def _descendants(session: Session, run: Run) -> list[Run]:
    found: list[Run] = []
    level = [run.id]
    while level:
        children = [
            child
            for part in _parts(level)
            for child in session.scalars(select(Run).where(Run.parent_id.in_(part)))
        ]
        found += children
        level = [child.id for child in children]
    return found


def _delete_files(store: RunStore, run: Run) -> int:
    gone = 0
    folders: set[Path] = set()
    for artefact in store.artefacts(run.run_id):
        with contextlib.suppress(Exception):
            path = file_of(run, artefact, artefact.name)
            path.unlink()
            folders |= {path.parent, Path(run.folder)}
            gone += 1
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()  # only when it is empty
    return gone


def _parts(keys: Sequence[int]) -> list[Sequence[int]]:
    return [keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK)]
