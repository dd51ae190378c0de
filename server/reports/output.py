"""How ``lorica runs`` shows things: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.text import Text

from lorica.common.display.console import Console
from lorica.common.display.tables import Table
from lorica.common.display.text import printable
from lorica.common.display.wording import duration, epsilon_text, human_bytes, percent
from lorica.server.reports.export import run_content, whole_run
from lorica.server.results.kept_own import kept_own_said
from lorica.server.store.prune import Pruning
from lorica.server.store.queries import Queries
from lorica.server.store.tables import Run

SEALED = (
    "the coordinator saw sums over sites alone: norms, agreement and screening of single sites are "
    "sealed"
)

__all__ = ["run_content", "whole_run"]

COLOURS = {
    "queued": "dim",
    "running": "bold blue",
    "stopping": "bold yellow",
    "stopped": "yellow",
    "finished": "green",
    "failed": "bold red",
    "interrupted": "bold red",
}
_LATEST_EVENTS = 10


def say(*parts: RenderableType) -> None:
    """Print for people."""
    console = Console()
    for part in parts:
        console.print(part, highlight=False, soft_wrap=isinstance(part, str), markup=False)


def print_json(content: Any) -> None:
    """Print for programs."""
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def runs_table(runs: Sequence[Run]) -> Table:
    """Runs in a table, a line each."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("run", "status", "created", "name", "method"):
        table.add_column(head, no_wrap=head in ("run", "status", "created"))
    for head in ("ε", "rounds", "sites", "score", "problems"):
        table.add_column(head, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(
            Text(run.run_id),
            status_text(run),
            when(run.created),
            Text(printable(run.name)),
            run.method if run.kind in ("federation", "simulation") else run.kind,
            "∞" if run.epsilon is None else f"{run.epsilon:g}",
            f"{run.rounds_done}/{run.rounds}",
            str(run.sites) if run.sites else "–",
            score_text(run.score if run.score is not None else run.site_score),
            Text(str(run.problems), style="yellow" if run.problems else "dim"),
        )
    return table


def run_view(store: Queries, run: Run) -> list[RenderableType]:
    """All that one wants to know of a run at first."""
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    done = f"{run.rounds_done} of {run.rounds}"
    now = run.heartbeat if run.live else run.ended
    spent = "no privacy" if run.epsilon is None else f"budget {run.epsilon:g}"
    if run.epsilon_spent is not None:
        spent = f"{epsilon_text(run.epsilon_spent)} of {run.epsilon:g}, as the plan declares"
    rows: list[tuple[str, RenderableType]] = [
        ("run", Text(f"{run.run_id}  {printable(run.name)}", style="bold")),
        ("status", status_text(run)),
        ("what", f"{run.kind}: {run.task}, {run.method} on {run.backbone}"),
        ("created", when(run.created) + (f" by {run.submitted_by}" if run.submitted_by else "")),
        ("rounds", f"{done} in {duration(run.seconds)}" if run.seconds else done),
        (run.headline, score_text(run.score)),
        ("by sites", score_text(run.site_score)),
        *([("guards", said)] if (said := kept_own_said(store.rounds(run.run_id))) else []),
        ("ε", spent),
        *([("sealed", SEALED)] if run.sealed else []),
        ("bytes", f"{human_bytes(run.bytes_up)} up, {human_bytes(run.bytes_down)} down"),
        ("energy", "not measured" if run.energy_kwh is None else f"{run.energy_kwh:.4f} kWh"),
        ("folder", Text(run.folder or "–")),
    ]
    if now:
        rows.insert(4, ("last sign of life" if run.live else "ended", when(now)))
    if run.error:
        rows.insert(2, ("why", Text(f"{run.error_code} {run.error}".strip())))
    for name, value in rows:
        facts.add_row(name, value)
    parts: list[RenderableType] = [facts]
    sites = store.run_sites(run.run_id)
    if sites:
        parts.append(_sites_table(sites, sealed=run.sealed))
    events = store.events(run.run_id, level="warning", limit=_LATEST_EVENTS)
    if events:
        table = Table(box=SIMPLE_HEAD, title="Latest problems", title_justify="left")
        for head in ("when", "round", "site", "what"):
            table.add_column(head)
        for event in events:
            round = "" if event.round is None else str(event.round)
            table.add_row(when(event.at), round, Text(event.site or ""), Text(event.text))
        parts.append(table)
    artefacts = store.artefacts(run.run_id)
    if artefacts:
        table = Table(box=SIMPLE_HEAD, title="Artefacts", title_justify="left")
        table.add_column("file")
        table.add_column("size", justify="right")
        for artefact in artefacts:
            table.add_row(Text(artefact.name), human_bytes(artefact.bytes))
        parts.append(table)
    return parts


def _sites_table(sites: Sequence[Any], *, sealed: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, title="Sites", title_justify="left")
    table.add_column("site")
    for head in ("ok", "refused", "failed", "late", "agreement", "ε", "sent"):
        table.add_column(head, justify="right")
    table.add_column("last")
    for site, sums in sites:
        agreement = "–" if sums.agreement is None else f"{sums.agreement:+.2f}"
        agreement = "sealed" if sealed else agreement
        table.add_row(
            Text(site.name),
            *(str(getattr(sums, name)) for name in ("ok", "refused", "failed", "late")),
            agreement,
            "–" if sums.epsilon is None else epsilon_text(sums.epsilon),
            human_bytes(sums.bytes_up),
            Text(f"{sums.last_status} {sums.last_reason}".strip()[:80]),
        )
    return table


def comparison(store: Queries, runs: Sequence[Run]) -> dict[str, Any]:
    """Runs side by side as plain values."""
    rows = store.differences([run.run_id for run in runs])
    return {
        "runs": [run_content(run) for run in runs],
        "differences": {row.key: row.values for row in rows},
        "curves": {run.run_id: store.curves(run.run_id) for run in runs},
    }


def comparison_tables(store: Queries, runs: Sequence[Run]) -> list[RenderableType]:
    """Runs side by side: results, then the plan keys that differ."""
    results = Table(box=SIMPLE_HEAD, title="Results", title_justify="left")
    differing = Table(box=SIMPLE_HEAD, title="Plans differ in", title_justify="left")
    for table, head in ((results, ""), (differing, "key")):
        table.add_column(head, style="dim")
        for run in runs:
            table.add_column(
                Text((run.name and f"{run.run_id}\n{printable(run.name)}") or run.run_id)
            )
    lines: dict[str, list[RenderableType]] = {
        "status": [status_text(run) for run in runs],
        "score": [score_text(run.score) for run in runs],
        "by sites": [score_text(run.site_score) for run in runs],
        "loss": ["–" if run.loss is None else f"{run.loss:.4f}" for run in runs],
        "ε spent": [
            "–" if run.epsilon_spent is None else epsilon_text(run.epsilon_spent) for run in runs
        ],
        "rounds": [f"{run.rounds_done}/{run.rounds}" for run in runs],
        "bytes up": [human_bytes(run.bytes_up) for run in runs],
        "time": [duration(run.seconds) for run in runs],
        "problems": [str(run.problems) for run in runs],
    }
    for name, cells in lines.items():
        results.add_row(name, *cells)
    rows = store.differences([run.run_id for run in runs])
    for row in rows:
        differing.add_row(row.key, *(Text("–" if v is None else str(v)) for v in row.values))
    return [results, differing if rows else Text("Their plans are the same.")]


def prune_table(pruning: Pruning, *, files: bool) -> Table:
    """What will go."""
    kept = "deleted, too" if files else "stay where they are"
    caption = (
        f"{len(pruning.runs)} runs with {pruning.rounds:,} rounds, {pruning.site_rounds:,} site "
        f"rounds and {pruning.events:,} events; their {pruning.files} files "
        f"({human_bytes(pruning.bytes)}) {'are ' if files else ''}{kept}."
    )
    table = Table(box=SIMPLE_HEAD, title="To be deleted", title_justify="left", caption=caption)
    for head in ("run", "kind", "status", "created", "folder"):
        table.add_column(head)
    for run in pruning.runs:
        table.add_row(
            Text(run.run_id), run.kind, status_text(run), when(run.created), Text(run.folder)
        )
    return table


def status_text(run: Run) -> Text:
    """The status in its colour."""
    return Text(run.status, style=COLOURS.get(run.status, ""))


def score_text(value: float | None) -> str:
    """A score; those within 0…1 as per cent."""
    if value is None:
        return "–"
    return percent(value) if 0 <= value <= 1 else f"{value:.4f}"


def when(at: float) -> str:
    """A time on this machine's clock."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
