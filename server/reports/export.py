"""A run as a file: JSON with all that the store holds, or CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from lorica.common.display.csv import harmless
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import write_atomically
from lorica.server.store.queries import Queries, plan_values
from lorica.server.store.tables import Base, Run

_INNER = ("id", "run_id", "site_id", "parent_id")


def export_run(store: Queries, run: Run, path: Path, *, sites: bool = False) -> None:
    """Write a run to ``path``, whole or not at all; its ending decides the format.

    Args:
        store: holds the run.
        run: which.
        path: ends in .json or .csv.
        sites: in a .csv, a line for each site in each round instead of one for each round.

    Raises:
        LoricaError: LOR-601, LOR-602; LOR-602 for another ending.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        text = json.dumps(whole_run(store, run), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(path, text + "\n")
    elif suffix == ".csv":
        write_atomically(path, _csv(_site_rows(store, run) if sites else _round_rows(store, run)))
    else:
        raise LoricaError(
            Code.STORAGE_DENIED,
            f"{path} ends in neither .json nor .csv.",
            mend="Give --output a name that ends in .json or .csv.",
        )


def run_content(run: Run) -> dict[str, Any]:
    """A run's figures as plain JSON values, without its plan."""
    skipped = ("id", "parent_id", "plan", "versions", "summary")
    columns = [column.name for column in Run.__table__.columns if column.name not in skipped]
    return {name: getattr(run, name) for name in columns}


def whole_run(store: Queries, run: Run) -> dict[str, Any]:
    """All that the store holds of a run, as plain JSON values."""
    full = store.run(run.run_id)
    return {
        "format": 1,
        "run": run_content(full),
        "flower_runs": store.flower_runs(run.run_id),
        "plan": plan_values(full),
        "versions": full.versions,
        "summary": full.summary,
        "rounds": [_plain(row) for row in store.rounds(run.run_id)],
        "sites": [
            {"site": site.name, **_plain(sums), "agreement": sums.agreement}
            for site, sums in store.run_sites(run.run_id)
        ],
        "site_rounds": _site_rows(store, run),
        "events": [_plain(event) for event in reversed(store.events(run.run_id, limit=100_000))],
        "artefacts": [_plain(artefact) for artefact in store.artefacts(run.run_id)],
    }


def _round_rows(store: Queries, run: Run) -> list[dict[str, Any]]:
    rows = []
    for row in store.rounds(run.run_id):
        content = _plain(row)
        for group in ("phases", "metrics", "site_metrics", "by_label", "kept_own"):
            values = content.pop(group) or {}
            content |= {f"{group}.{name}": value for name, value in values.items()}
        del content["alike"]  # a table of its own, in the JSON
        rows.append(content)
    return rows


def _site_rows(store: Queries, run: Run) -> list[dict[str, Any]]:
    cells = sorted(store.site_cells(run.run_id), key=lambda cell: (cell.round, cell.site))
    return [dict(vars(cell)) for cell in cells]


def _plain(row: Base) -> dict[str, Any]:
    columns = [column.name for column in row.__table__.columns if column.name not in _INNER]
    return {name: getattr(row, name) for name in columns}


def _csv(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    return harmless(value) if isinstance(value, str) else value
