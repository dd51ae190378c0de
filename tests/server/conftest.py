"""A store on SQLite and one on a real PostgreSQL; what a run says to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lorica.server.store import RunStore


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql_url"))
    return f"sqlite:///{tmp_path / 'store' / 'runs.sqlite'}"


@pytest.fixture
def store(store_url: str) -> Iterator[RunStore]:
    """An empty store."""
    opened = RunStore.open(store_url)
    yield opened
    opened.close()
