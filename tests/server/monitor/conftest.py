"""A store with two accounts and a run, and browsers of an operator, a viewer and a stranger."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from starlette.testclient import TestClient

from lorica.server.monitor.access import accounts as accounts_module
from lorica.server.monitor.access.accounts import Accounts
from lorica.server.store import RunStore
from tests.server.monitor.helpers import PASSWORDS, add_run, client_of, sign_in


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that take microseconds; a test of its own sees to the real ones."""
    monkeypatch.setattr(accounts_module, "_HASHER", PasswordHasher(1, 8, 1))
    monkeypatch.setattr(accounts_module, "_nobody", lambda: PasswordHasher(1, 8, 1).hash("x"))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a store without anything, to be copied."""
    path = tmp_path_factory.mktemp("store") / "runs.sqlite"
    opened = RunStore.open(str(path))
    with opened.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    opened.close()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Iterator[RunStore]:
    """A store with one running run."""
    opened = RunStore.open(str(shutil.copy(empty_store, tmp_path / "runs.sqlite")))
    add_run(opened)
    yield opened
    opened.close()


@pytest.fixture
def accounts(store: RunStore) -> Accounts:
    """An operator and a viewer."""
    made = Accounts(store)
    made.add("olga", "operator", PASSWORDS["olga"])
    made.add("victor", "viewer", PASSWORDS["victor"])
    return made


@pytest.fixture
def stranger(store: RunStore, accounts: Accounts) -> TestClient:
    """A browser that is not signed in, at a monitor with accounts."""
    return client_of(store)


@pytest.fixture
def operator(store: RunStore, accounts: Accounts) -> TestClient:
    """Olga's browser."""
    client = client_of(store)
    assert sign_in(client, "olga").status_code == 303
    return client


@pytest.fixture
def viewer(store: RunStore, accounts: Accounts) -> TestClient:
    """Victor's browser."""
    client = client_of(store)
    assert sign_in(client, "victor").status_code == 303
    return client
