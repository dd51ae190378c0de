"""Alembic migrations of the run store, run when a store is opened."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from lorica.common.errors import Code, LoricaError
from lorica.server.store.database import VERSION_TABLE, exclusively, schema_version, shown


def upgrade(engine: Engine) -> None:
    """Bring the schema up to date, whole or not at all, while no other process does.

    Raises:
        LoricaError: LOR-802 when the schema is of a newer Lorica.
    """
    with exclusively(engine) as connection:
        found = schema_version(connection)  # another process may have been first
        config = configured(connection)
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if found and found not in known:
            raise LoricaError(
                Code.STORE_SCHEMA,
                f"The run store {shown(engine.url)} has schema {found!r}, written by a newer "
                f"Lorica; this one knows schemas up to {max(known)!r}.",
            )
        command.upgrade(config, "head")


def configured(connection: Connection) -> Config:
    """Alembic's configuration for one open connection; no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["version_table"] = VERSION_TABLE
    return config
