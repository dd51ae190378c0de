"""Files of a run's results folder that people fetch: which, and never one from outside it."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from sqlalchemy import delete
from sqlalchemy.orm import Session

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors
from lorica.server.results.folder import ADAPTER, CHECKPOINT, PICTURE, PLAN, REPORT, ROUNDS, SUMMARY
from lorica.server.store.tables import Artefact, Run

KINDS = {
    PLAN: "plan",
    ROUNDS: "records",
    SUMMARY: "records",
    REPORT: "report",
    PICTURE: "report",
    "decision.html": "report",
    CHECKPOINT: "checkpoint",
    "sweep.json": "records",
    "sweep.md": "report",
    "sweep.png": "report",
}
"""Files at the top of a results folder that are entered, with their kinds."""

_CHUNK = 1 << 20


def enter(session: Session, run: Run) -> None:
    """Enter the files that are in the run's folder now, with sizes and SHA-256."""
    folder = Path(run.folder)
    session.execute(delete(Artefact).where(Artefact.run_id == run.id))
    if not run.folder or not folder.is_dir():
        return
    found = [(name, kind) for name, kind in KINDS.items() if (folder / name).is_file()]
    if (folder / ADAPTER).is_dir():
        names = sorted(path.name for path in (folder / ADAPTER).iterdir() if path.is_file())
        found += [(f"{ADAPTER}/{name}", "adapter") for name in names]
    for name, kind in found:
        path = folder / name
        if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            continue
        with storage_errors(path):
            session.add(
                Artefact(
                    run_id=run.id,
                    name=name,
                    kind=kind,
                    bytes=path.stat().st_size,
                    sha256=_sha256(path),
                    created=path.stat().st_mtime,
                )
            )


def file_of(run: Run, known: Artefact | None, name: str) -> Path:
    """The file of an artefact. Raises LOR-807 for any that was not entered, leaves the run's
    folder, or is gone."""
    relative = PurePosixPath(name)
    if known is None or not run.folder or relative.is_absolute() or ".." in relative.parts:
        raise LoricaError(Code.ARTEFACT_UNKNOWN, f"Run {run.run_id} has no artefact {name!r}.")
    folder = Path(run.folder).resolve()
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder) or not path.is_file():
        raise LoricaError(
            Code.ARTEFACT_UNKNOWN,
            f"The file {name!r} of run {run.run_id} is gone from {run.folder}.",
        )
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
