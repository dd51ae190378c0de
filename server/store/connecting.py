"""An engine on a store's database whose schema is up to date."""

from __future__ import annotations

from sqlalchemy import Engine

from lorica.server.store.database import HEAD, make_engine, schema_version, store_errors
from lorica.server.store.migrations import upgrade


def connect(url: str) -> Engine:
    """An engine on an up-to-date schema; creates the SQLite file and all tables when missing.

    Raises:
        LoricaError: LOR-801 when it cannot be opened or reached, LOR-802 when a newer Lorica
            wrote it.
    """
    engine = make_engine(url)
    with store_errors(engine.url):
        with engine.connect() as connection:
            found = schema_version(connection)
        if found != HEAD:
            upgrade(engine)
    return engine
