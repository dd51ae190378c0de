"""Open the run store's database: SQLite or PostgreSQL, its schema brought up to date.

SQLite runs in WAL mode, so that pages read while a run writes. A transaction that will write says
so when it begins (``writing``): SQLite then takes its lock at once and waits for it, instead of
failing half-way when two readers both turn writer.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors
from lorica.common.machine.home import STORE_VARIABLE, home

NONE = "none"

HEAD = "0002"
"""The newest schema; a test holds it against the migrations."""
VERSION_TABLE = "lorica_schema"

_BUSY_SECONDS = 30
_CONNECT_SECONDS = 5
_LOCK = 0x10F1CA  # advisory lock of PostgreSQL, any fixed number


def store_url(given: str | None = None) -> str:
    """The store's URL: the argument, else LORICA_STORE, else SQLite in :func:`home`.

    A path without a scheme means an SQLite file. "none" stays "none".
    """
    found = given or os.environ.get(STORE_VARIABLE) or ""
    if not found:
        return f"sqlite:///{home() / 'runs.sqlite'}"
    if found != NONE and "://" not in found:
        return f"sqlite:///{Path(found).absolute()}"
    return found


def shown(url: str | URL) -> str:
    """The URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "the store's URL"


def schema_version(connection: Connection) -> str:
    """The schema that the database has; empty for none yet."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return ""
    return str(connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")) or "")


@contextlib.contextmanager
def exclusively(engine: Engine) -> Iterator[Connection]:
    """A transaction that no other process migrates beside."""
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        yield connection


@contextlib.contextmanager
def store_errors(url: URL) -> Iterator[None]:
    """Turn the database's errors into LOR-801, which names the store, never a password."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
        if url.password:
            reason = reason.replace(str(url.password), "***")
        raise LoricaError(
            Code.STORE_UNREACHABLE, f"The run store {shown(url)} cannot be used: {reason}."
        ) from error


def make_engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        if backend == "sqlite":
            return _sqlite(parsed)
        if backend == "postgresql":
            return _postgresql(parsed)
    except (ArgumentError, NoSuchModuleError):
        pass
    except ModuleNotFoundError as error:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            f"The run store {shown(url)} needs the package {error.name}.",
            mend="pip install 'lorica[postgresql]'",
        ) from error
    raise LoricaError(
        Code.STORE_UNREACHABLE,
        f"{shown(url)!r} is no URL of a run store; expected sqlite:///PATH, a path, or "
        "postgresql+psycopg://USER@HOST/DATABASE.",
    )


def _sqlite(url: URL) -> Engine:
    file = Path(url.database or "")
    if not url.database or url.database == ":memory:":
        raise LoricaError(
            Code.STORE_UNREACHABLE, "A run store in memory would be lost; give a file's path."
        )
    with storage_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        with storage_errors(file), contextlib.suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL, 0o600))  # names of sites, plans
    engine = create_engine(
        url, connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False}, pool_size=20
    )
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, DDL included
    for pragma in (
        f"busy_timeout = {_BUSY_SECONDS * 1000}",
        "journal_mode = WAL",
        "synchronous = NORMAL",
        "foreign_keys = ON",
        "cache_size = -32768",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get("writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _postgresql(url: URL) -> Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    arguments = {"connect_timeout": _CONNECT_SECONDS, "application_name": "lorica"}
    return create_engine(
        url,
        connect_args={k: v for k, v in arguments.items() if k not in url.query},
        pool_pre_ping=True,
        pool_size=10,
    )
