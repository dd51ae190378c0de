"""How long the run store takes for what pages ask: 1,000 runs × 100 rounds × 50 sites.

    python benchmarks/speed/store.py [--url URL] [--runs 1000] [--rounds 100] [--sites 50]

Fills an empty store (SQLite in a temporary folder, or the empty database at URL) with site rounds
by bulk insert, then times every question that a page or command asks, median of 15 after one
warm-up, and the transaction that writes one round of that many sites. "÷ small" is the same
question on a store with a hundredth of the runs: what the size costs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table
from sqlalchemy import insert, text

from lorica.common.display.console import Console
from lorica.common.plan import RunPlan
from lorica.server.reports.alerts import alerts
from lorica.server.results.round import RoundRecord
from lorica.server.results.round import SiteRound as SiteRecord
from lorica.server.store import RunStore
from lorica.server.store.tables import Event, Round, Run, Site, SiteRound, SiteRun

REPEATS = 15
DAY = 86400.0
STATUSES = ("finished",) * 17 + ("failed", "stopped", "interrupted")
METHODS = ("fedsvd", "fedavg", "ffa", "flexlora")


def fill(store: RunStore, runs: int, rounds: int, sites: int) -> float:
    """Insert so many runs, evenly over a year; seconds it took."""
    begun, now, dice = time.perf_counter(), time.time(), random.Random(0)
    plan = RunPlan().replace(task={"labels": ["a", "b"]}, rounds={"count": rounds})
    from lorica.common.plan.io import to_toml

    toml = to_toml(plan)
    with store.writing() as session:
        session.execute(
            insert(Site),
            [{"id": i + 1, "name": f"hospital-{i:03d}", "last_seen": now} for i in range(sites)],
        )
    for number in range(runs):
        with store.writing() as session:
            _one_run(session, number, runs, rounds, sites, now, dice, toml)
    if store.engine.dialect.name == "postgresql":
        with store.writing() as session:
            for name in ("runs", "sites"):
                session.execute(
                    text(
                        f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), "
                        f"(SELECT max(id) FROM {name}))"
                    )
                )
    with store.writing() as session:
        session.execute(text("ANALYZE"))
    return time.perf_counter() - begun


def _one_run(
    session: Any,
    number: int,
    runs: int,
    rounds: int,
    sites: int,
    now: float,
    dice: random.Random,
    toml: str,
) -> None:
    key, created = number + 1, now - 365 * DAY * (1 - number / runs)
    live = number == runs - 1
    session.execute(
        insert(Run),
        {
            "id": key,
            "run_id": f"run-{number:05d}",
            "kind": "federation",
            "status": "running" if live else dice.choice(STATUSES),
            "name": f"trial {number}",
            "created": created,
            "started": created,
            "heartbeat": now if live else created + rounds,
            "ended": None if live else created + rounds,
            "method": METHODS[number % len(METHODS)],
            "task": "text-classification",
            "backbone": "embedded",
            "epsilon": 8.0,
            "delta": 1e-5,
            "rounds": rounds,
            "rounds_done": rounds,
            "sites": sites,
            "problems": rounds,
            "accuracy": 0.8,
            "score": 0.8,
            "epsilon_spent": 7.9,
            "bytes_up": rounds * sites * 120_000,
            "seconds": float(rounds),
            "plan": toml,
        },
    )
    session.execute(
        insert(Round),
        [
            {
                "run_id": key,
                "round": r,
                "ended": created + r,
                "stage": "head",
                "score": 0.5 + 0.3 * r / rounds,
                "accuracy": 0.5 + 0.3 * r / rounds,
                "loss": 1.5 - r / rounds,
                "asked": sites,
                "ok": sites - 1,
                "bytes_up": sites * 120_000,
                "bytes_down": sites * 120_000,
                "seconds": 1.0,
                "phases": {"sites": 0.8, "aggregate": 0.1, "evaluate": 0.1},
                "mean_norm": 1.0,
                "noise_norm": 0.5,
                "signal_to_noise": 1.7,
                "epsilon": 8 * r / rounds,
            }
            for r in range(rounds + 1)
        ],
    )
    rows = [
        {
            "run_id": key,
            "round": r,
            "site_id": s + 1,
            "status": "late" if (r + number) % sites == s else "ok",
            "reason": "LOR-504: no answer in time" if (r + number) % sites == s else None,
            "weight": 1000,
            "update_norm": 1.2,
            "agreement": 0.4,
            "epsilon": 8 * r / rounds,
            "bytes_up": 120_000,
            "seconds": 0.5,
        }
        for r in range(1, rounds + 1)
        for s in range(sites)
    ]
    _bulk(session, rows)
    session.execute(
        insert(SiteRun),
        [
            {
                "run_id": key,
                "site_id": s + 1,
                "last_seen": created + rounds,
                "last_round": rounds,
                "last_status": "ok",
                "ok": rounds - 2,
                "late": 2,
                "agreement_sum": 0.4 * rounds,
                "agreement_count": rounds,
                "epsilon": 8.0,
            }
            for s in range(sites)
        ],
    )
    session.execute(
        insert(Event),
        [
            {
                "run_id": key,
                "at": created + r,
                "level": "warning",
                "code": "LOR-504",
                "text": "late: no answer in time",
                "round": r,
                "site": f"hospital-{(r + number) % sites:03d}",
            }
            for r in range(1, rounds + 1)
        ],
    )


def _bulk(session: Any, rows: list[dict[str, Any]]) -> None:
    """Site rounds by the driver's own fastest way."""
    columns = [column.name for column in SiteRound.__table__.columns]
    raw = session.connection().connection.driver_connection
    values = [tuple(row[name] for name in columns) for row in rows]
    if session.get_bind().dialect.name == "postgresql":
        with (
            raw.cursor() as cursor,
            cursor.copy(f"COPY site_rounds ({', '.join(columns)}) FROM STDIN") as copy,
        ):
            for value in values:
                copy.write_row(value)
        return
    marks = ", ".join("?" * len(columns))
    raw.executemany(f"INSERT INTO site_rounds ({', '.join(columns)}) VALUES ({marks})", values)


def questions(store: RunStore, runs: int, sites: int) -> dict[str, Callable[[], Any]]:
    """What pages ask, by page."""
    middle = f"run-{runs // 2:05d}"
    several = [f"run-{number:05d}" for number in range(min(4, runs))]
    site = store.site("hospital-000")
    assert site is not None
    cursor = store.list_runs(limit=runs // 2).next

    def whole_run() -> None:
        store.run(middle)
        store.curves(middle)
        store.grid(middle)
        store.run_sites(middle)
        store.events(middle, limit=50)
        store.artefacts(middle)

    def compared() -> None:
        for run in several:
            store.curves(run, ("score", "loss", "epsilon"))
        store.differences(several)

    def counted() -> None:
        from lorica.server.reports.metrics import prometheus_text

        prometheus_text(store)

    return {
        "runs: first page of 50": lambda: store.list_runs(limit=50),
        "runs: a page in the middle": lambda: store.list_runs(limit=50, after=cursor),
        "runs: failed ones": lambda: store.list_runs(status="failed", limit=50),
        "runs: search that finds few": lambda: store.list_runs(search="trial 77", limit=50),
        "runs: number by status": store.count_runs,
        "run: curves, grid, sites, events": whole_run,
        "run: ε of every site over the rounds": lambda: store.site_curves(middle, "epsilon"),
        "run: one round's sites": lambda: store.site_cells(middle, round=7),
        "run: all problems": lambda: store.site_cells(middle, problems_only=True),
        "compare 4 runs": compared,
        "sites: all": lambda: store.sites(limit=100),
        "site: its last 50 runs": lambda: store.site_history(site),
        "log: newest 200 of all runs": lambda: store.events(limit=200),
        "alerts": lambda: alerts(store),
        "/metrics": counted,
    }


def median_ms(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median milliseconds of a call, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times)


def write_ms(store: RunStore, sites: int) -> float:
    """Median milliseconds of the transaction that writes one round of so many sites."""
    plan = RunPlan().replace(task={"labels": ["a", "b"]})
    store.create_run("writing", plan)
    entries = [
        SiteRecord(f"hospital-{s:03d}", "ok", "", 1000, 1.2, 120_000, 0.5, 0.4)
        for s in range(sites)
    ]
    store.begin("writing", plan, entries, 1)
    numbers = iter(range(1, 1000))
    return median_ms(
        lambda: store.add_rounds("writing", [RoundRecord(next(numbers), entries, loss=1.0)])
    )


def main() -> None:
    """Fill, ask, print."""
    options = argparse.ArgumentParser()
    options.add_argument("--url", default="")
    for name, default in (("runs", 1000), ("rounds", 100), ("sites", 50)):
        options.add_argument(f"--{name}", type=int, default=default)
    given = options.parse_args()
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore.open(given.url or f"sqlite:///{folder}/runs.sqlite")
        small = RunStore.open(f"sqlite:///{folder}/small.sqlite")
        few = max(8, given.runs // 100)
        seconds = fill(store, given.runs, given.rounds, given.sites)
        fill(small, few, given.rounds, given.sites)
        size = (Path(folder) / "runs.sqlite").stat().st_size if not given.url else 0
        count = given.runs * given.rounds * given.sites
        console.print(
            f"{count:,} site rounds in {seconds:.0f} s"
            + (f", {size / 1e6:,.0f} MB on disk" if size else "")
        )
        table = Table(box=None, title=f"{store.engine.dialect.name}: median of {REPEATS}")
        table.add_column("question")
        for head in ("ms", "÷ small"):
            table.add_column(head, justify="right")
        base = questions(small, few, given.sites)
        for what, call in questions(store, given.runs, given.sites).items():
            here = median_ms(call)
            table.add_row(what, f"{here:.1f}", f"{here / median_ms(base[what]):.1f}")
        table.add_row("write one round", f"{write_ms(store, given.sites):.1f}", "")
        console.print(table)
        store.close()
        small.close()


if __name__ == "__main__":
    main()
