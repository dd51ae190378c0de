"""A site trained from a PostgreSQL query, end to end; what a failing database costs: nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lorica.client.config.site import SiteConfig, load_site
from lorica.client.data.fetched import fetch
from lorica.client.data.reading import read_records
from lorica.client.site.cost import count_units
from lorica.client.training.opening import open_ledger, open_trainer
from lorica.common.adapter.state import pack_state
from lorica.common.backbone.files import backbone_sha256
from lorica.common.backbone.loading import load_backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.io import load_plan
from lorica.common.tasks import task_of
from lorica.common.wire.messages import TRAIN, Request
from tests.client.service.helpers import KEY
from tests.conftest import SMALL_WORDS
from tests.postgresql_server import WITH_PASSWORD

SECRET, PASSWORD = "SECRET_OF_THE_TEST", "a password"
ROUNDS = 3


@pytest.fixture
def plan(small_backbone: Path) -> RunPlan:
    settings = ["task.labels=a,b", "privacy.unit=patient", "training.expected_batch_size=8"]
    settings += ["training.mode=local", "training.local_steps=1", "rounds.warm_start=0"]
    settings += [f"backbone.source={small_backbone}", f"rounds.count={ROUNDS}"]
    return load_plan(None, settings)


@pytest.fixture
def admin(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection[Any]]:
    monkeypatch.setenv(SECRET, PASSWORD)
    with psycopg.connect(postgresql_url.replace("+psycopg", ""), autocommit=True) as connection:
        there = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [WITH_PASSWORD])
        if there.fetchone() is None:
            connection.execute(f"CREATE ROLE {WITH_PASSWORD} SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        connection.execute("CREATE TABLE letters (id int, body text, dept text, pid text)")
        for i in range(120):
            words = " ".join(SMALL_WORDS[(i * 5 + k) % len(SMALL_WORDS)] for k in range(3))
            row = [i, words, "ab"[i % 2], f"p{i // 2}"]
            connection.execute("INSERT INTO letters VALUES (%s, %s, %s, %s)", row)
        yield connection


@pytest.fixture
def site(
    tmp_path: Path, plan: RunPlan, admin: psycopg.Connection[Any], postgresql_url: str
) -> Path:
    """A site.toml whose records are a query; its ledger is there, unused."""
    source = f"postgresql+psycopg://{WITH_PASSWORD}@{postgresql_url.partition('@')[2]}"
    query = "SELECT body AS text, dept AS label, pid AS patient FROM letters ORDER BY id"
    path = tmp_path / "site" / "site.toml"
    path.parent.mkdir()
    path.write_text(
        f'[site]\nname = "north"\n[data]\nsource = "{source}"\nquery = "{query}"\n'
        f'unit = "patient"\npassword = "env:{SECRET}"\n[policy]\nunit = "patient"\n'
        f'minimum_units = 20\nnoise = "seeded"\n'
        f'sampling_units = 60\ncoordinators = ["{KEY.public}"]\n'
        f"backbones = {json.dumps([backbone_sha256(Path(plan.backbone.source))])}\n"
        f"backbone_folders = {json.dumps([plan.backbone.source])}\n"
    )
    open_ledger(load_site(path), path.parent, create=True).close()
    return path


def updates(path: Path, plan: RunPlan, config: SiteConfig) -> list[bytes]:
    """What the trainer's process would answer to all rounds of a run."""
    trainer, ledger = open_trainer(config, path.parent, fetch(path, config))
    blob = pack_state(task_of(plan).start(load_backbone(plan.backbone)))
    try:
        asked = [
            KEY.sign(Request(plan, "run", n + 1, blob, site="north"), TRAIN) for n in range(ROUNDS)
        ]
        return [trainer.train(request).blob for request in asked]
    finally:
        ledger.close()


def test_a_site_trains_from_a_query_as_from_a_file_with_the_same_rows(
    site: Path, plan: RunPlan, admin: psycopg.Connection[Any]
) -> None:
    """Three charged rounds; the same updates, byte for byte, as of the rows in a CSV file."""
    config = load_site(site)
    answers = updates(site, plan, config)
    assert all(len(answer) > 1000 for answer in answers)
    assert len(set(answers)) == ROUNDS
    ledger = open_ledger(config, site.parent)
    assert len(ledger.history().charges) == ROUNDS
    ledger.close()
    assert count_units(plan, config, site.parent) == 60

    rows = admin.execute("SELECT body, dept, pid FROM letters ORDER BY id").fetchall()
    lines = ["text,label,patient", *(",".join(row) for row in rows)]
    (site.parent / "d.csv").write_text("\n".join(lines) + "\n")
    changed = {"source": "d.csv", "query": "", "password": ""}
    other = config.model_copy(
        update={
            "data": config.data.model_copy(update=changed),
            "ledger": config.ledger.model_copy(update={"path": "other.sqlite"}),
        }
    )
    open_ledger(other, site.parent, create=True).close()
    assert fetch(site, other) is None
    assert updates(site, plan, other) == answers


@pytest.mark.parametrize("fault", ["password", "schema", "killed", "malformed"])
def test_a_failing_database_costs_nothing_and_leaves_nothing(
    site: Path, plan: RunPlan, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:  # fmt: skip
    expected = {
        "password": Code.DATA_UNREACHABLE,
        "schema": Code.DATA_QUERY,
        "killed": Code.DATA_LOST,
        "malformed": Code.DATA_EMPTY_TEXT,
    }[fault]
    if fault == "password":
        monkeypatch.setenv(SECRET, "wrong-one")
    elif fault == "schema":
        admin.execute("ALTER TABLE letters RENAME COLUMN dept TO department")
    elif fault == "killed":  # while the fiftieth row is made, the server ends the session
        admin.execute(
            "CREATE VIEW v AS SELECT id, body, dept, pid, CASE WHEN id = 50 THEN "
            "pg_terminate_backend(pg_backend_pid()) ELSE true END AS alive FROM letters"
        )
        text = site.read_text().replace("FROM letters", "FROM v WHERE alive")
        site.write_text(text)
    else:
        admin.execute("UPDATE letters SET body = ' ' WHERE id = 100")
    before = {p.name: p.read_bytes() for p in site.parent.iterdir() if p.suffix != ".sqlite-shm"}
    with pytest.raises(LoricaError) as caught:
        updates(site, plan, load_site(site))
    assert caught.value.code is expected, str(caught.value)
    assert PASSWORD not in str(caught.value) and "wrong-one" not in str(caught.value)
    ledger = open_ledger(load_site(site), site.parent)
    assert ledger.history().charges == []
    ledger.close()
    after = {p.name for p in site.parent.iterdir() if p.suffix != ".sqlite-shm"}
    assert after - {"noise.key"} == set(before)  # the site's secret, made with the trainer


def test_what_was_fetched_is_what_would_be_read(site: Path) -> None:
    config = load_site(site)
    direct = read_records(config, site.parent)
    assert read_records(config, site.parent, fetch(site, config)) == direct
