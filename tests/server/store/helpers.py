"""Runs as the round loop tells of them."""

from __future__ import annotations

from lorica.common.plan import RunPlan
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.server.store import RunStore

PLAN = RunPlan().replace(task={"labels": ["a", "b"]}, rounds={"count": 8})


def record(
    round: int, *, late: str = "", sites: tuple[str, ...] = ("north", "south")
) -> RoundRecord:
    """A round as the loop would give it; site ``late`` does not answer."""
    entries = [
        SiteRound(name, "late", "LOR-504: no answer within 3 seconds", seconds=3.0)
        if name == late
        else SiteRound(name, "ok", "", 100, 1.5, 1000, 0.25, agreement=0.5)
        for name in (sites if round else ())
    ]
    return RoundRecord(
        round,
        entries,
        accuracy=0.5 + round / 20,
        loss=1.0 / (1 + round),
        bytes_up=sum(entry.bytes_up for entry in entries),
        bytes_down=500 * len(entries),
        seconds=1.0,
        seconds_by_phase={"sites": 0.75, "aggregate": 0.25},
    )


def filled(store: RunStore, run_id: str = "run-1", rounds: int = 3, **values: object) -> str:
    """A finished run in the store."""
    store.create_run(run_id, PLAN, **values)  # type: ignore[arg-type]
    store.begin(run_id, PLAN, record(1).sites, 1)
    store.add_rounds(run_id, [record(number) for number in range(rounds + 1)])
    store.set_status(run_id, "finished")
    return run_id
