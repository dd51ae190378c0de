"""A monitor over a small store, and people who use it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
from starlette.testclient import TestClient

from lorica.common.plan.io import load_plan
from lorica.server.monitor.access.settings import Settings
from lorica.server.monitor.app import create_app
from lorica.server.monitor.request.shared import Shared
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.server.store import RunStore

BASE = "http://127.0.0.1:8600"
PASSWORDS = {"olga": "correct horse battery", "victor": "staple orange window"}
"""An operator and a viewer."""


def add_run(
    store: RunStore,
    run_id: str = "run-1",
    *,
    sites: tuple[str, ...] = ("north", "south"),
    rounds: int = 3,
    status: str = "running",
    reason: str = "",
    folder: Path | None = None,
    name: str = "",
    settings: tuple[str, ...] = (),
    kind: Any = "federation",
) -> None:
    """A run with whole rounds; with ``reason`` the first site refuses in the last one."""
    plan = load_plan(None, ["rounds.count=5", *settings])
    store.create_run(run_id, plan, name=name, kind=kind, folder=folder)
    store.begin(run_id, plan, [SiteRound(site, "ok", weight=100) for site in sites], 1)
    records = []
    for round in range(rounds + 1):
        entries = [SiteRound(s, "ok", "", 100, 0.5, bytes_up=1000, seconds=0.1) for s in sites]
        if reason and round == rounds:
            entries[0] = SiteRound(sites[0], "refused", reason, seconds=0.1)
        score = 0.5 + round / 100
        records.append(
            RoundRecord(
                round,
                entries if round else [],
                metrics={"accuracy": score, "loss": 1 - score},
                accuracy=score,
                loss=1 - score,
                seconds=1.0,
                seconds_by_phase={"sites": 0.9, "aggregate": 0.1},
            )
        )
    store.add_rounds(run_id, records, spent={rounds: dict.fromkeys(sites, 2.5)})
    if status != "running":
        store.set_status(run_id, status)  # type: ignore[arg-type]


def shared_of(client: TestClient) -> Shared:
    """What requests of a client share."""
    shared = client.app.state.shared  # type: ignore[attr-defined]
    assert isinstance(shared, Shared)
    return shared


def client_of(store: RunStore, settings: Settings | None = None, base: str = BASE) -> TestClient:
    """A browser without a session."""
    app = create_app(store, settings or Settings())
    return TestClient(app, base_url=base, follow_redirects=False, client=("192.0.2.7", 5000))


def door(client: TestClient) -> str:
    """The sign-in form's token."""
    return field(client.get("/login"), "csrf")


def field(answer: httpx.Response, name: str) -> str:
    """The value of a hidden field of a page."""
    found = re.search(rf'name="{name}" value="([^"]*)"', answer.text)
    assert found, answer.text
    return found.group(1)


def sign_in(client: TestClient, name: str, password: str | None = None) -> httpx.Response:
    """Sign in as people do."""
    fields = {"name": name, "password": password or PASSWORDS[name], "csrf": door(client)}
    return client.post("/login", data=fields)
