"""Take a results folder into the store: an older run, or one that the store missed a part of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.server.recording.spending import Spending
from lorica.server.results.folder import CHECKPOINT, PLAN, ROUNDS, SUMMARY, RunFolder
from lorica.server.results.round import RoundRecord
from lorica.server.store import RunStore
from lorica.server.store.tables import Kind


def import_folder(store: RunStore, folder: Path, run_id: str | None = None) -> str:
    """Take in a folder's plan, rounds and artefacts; rounds that are there are left as they are.

    Also how a run catches up that the store missed.

    A run that the store does not have gets the id of its checkpoint, where that is unique to the
    run, else one made of the folder's name and the plan's fingerprint. Its times are those of the
    files. A run that has a process now keeps its status.

    Returns:
        The run's id.

    Raises:
        LoricaError: LOR-604 when the folder holds no run, LOR-104 when the store's run of this id
            has another plan.
    """
    plan = RunFolder(folder).plan()
    records = _records(folder)
    summary = _summary(folder)
    known = run_id or _known(store, folder) or _identity(folder, plan)
    try:
        run = store.run(known)
    except LoricaError as error:
        if error.code is not Code.RUN_UNKNOWN:
            raise
        simulated = bool(summary) or (run_id is None and known.startswith("simulation-"))
        kind: Kind = "simulation" if simulated else "federation"
        begun = (folder / PLAN).stat().st_mtime
        run = store.create_run(
            known, plan, kind=kind, name=folder.name, folder=folder, created=begun
        )
        store.change_run(known, started=begun)
    if run.fingerprint != plan.fingerprint:
        raise LoricaError(
            Code.PLAN_MISMATCH, f"Run {known} in the store has another plan than {folder}."
        )
    have = {row.round for row in store.rounds(known)}
    missing = [record for record in records if record.round not in have]
    spending = Spending.over(plan, records)
    written = (folder / ROUNDS).stat().st_mtime if (folder / ROUNDS).exists() else run.created
    later = sum(record.seconds for record in missing)
    for record in missing:
        later -= record.seconds
        spent = {record.round: spending.get(record.round, {})}
        store.add_rounds(known, [record], spent=spent, ended=written - later)
    values: dict[str, Any] = {"folder": str(folder.absolute())}
    if summary:
        values |= {"summary": summary, "versions": summary.get("versions") or {}}
    if not run.live:
        done = bool(records) and records[-1].round >= plan.rounds.count
        values |= {"ended": written, "status": "finished" if done else "interrupted"}
        if run.status in ("stopped", "failed") and not done:
            values.pop("status")
    store.change_run(known, **values)
    store.add_artefacts(known)
    return known


def _known(store: RunStore, folder: Path) -> str | None:
    from sqlalchemy import select

    from lorica.server.store.tables import Run

    with store.reading() as session:
        query = select(Run.run_id).where(Run.folder == str(folder.absolute()))
        return session.scalar(query.order_by(Run.id.desc()).limit(1))


def _identity(folder: Path, plan: RunPlan) -> str:
    import safetensors

    path = folder / CHECKPOINT
    if path.is_file():
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                run = str(file.metadata()["run"])
        except (OSError, safetensors.SafetensorError, KeyError, TypeError) as error:
            raise LoricaError(Code.RUN_NOT_RESUMABLE, f"{path} is damaged: {error}.") from error
        if run not in ("federation", "alone", "pooled"):  # what simulations call theirs
            return run
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in folder.absolute().name)[:60]
    return f"simulation-{name}-{plan.fingerprint[:10]}"


def _records(folder: Path) -> list[RoundRecord]:
    """All whole lines; the last may be half, from a crash while it was appended."""
    path = folder / ROUNDS
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(RoundRecord.from_dict(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _summary(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
