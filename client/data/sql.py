"""A database by SQLAlchemy URL and query: read-only, streamed, with a time limit.

The database itself is told that the transaction only reads, so a query that writes fails there,
whatever it looks like. Rows come through a server-side cursor, a batch at a time. The password
comes from a variable or a private file and is in no message.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorica.client.data.credentials import password_of
from lorica.common.data.batches import BATCH_ROWS, CELL_CHARACTERS, Batch, json_text
from lorica.common.data.names.normal import number_form, time_form
from lorica.common.data.request import DataRequest
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

_READS = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*(select|with|values|table)\b", re.I | re.S)
_CONNECT_SECONDS = 20
_SQLITE_STEPS = 20_000  # of its virtual machine between two looks at the clock


def batches(request: DataRequest) -> Iterator[Batch]:
    """Batches of the rows of ``request.options["query"]``.

    Raises:
        LoricaError: LOR-207 a driver is missing, LOR-301 no such file, LOR-320 not reached or
            login refused, LOR-321 lost while reading, LOR-322 the query does not fit the
            database, LOR-323 it would write, LOR-324 credentials, LOR-325 too slow.
    """
    query = str(request.options["query"]).strip().rstrip(";").rstrip()
    if not query:
        raise LoricaError(Code.SITE_CONFIG, "data.query is empty; a database needs a SELECT.")
    if not _READS.match(query):
        raise LoricaError(
            Code.DATA_QUERY_WRITES,
            f"data.query begins with '{query.split()[0]}'; a query that reads begins with SELECT "
            "or WITH.",
        )
    timeout = float(request.options["timeout"])
    try:
        from sqlalchemy import text
    except ModuleNotFoundError as error:
        raise LoricaError(
            Code.PACKAGE_MISSING, "Databases need SQLAlchemy.", mend="pip install 'lorica[site]'"
        ) from error
    url = _url(request)
    said = _Failure(url, timeout)
    with ExitStack() as opened:
        with said.while_connecting():
            engine = _engine(url, request.root, timeout)
            opened.callback(engine.dispose)
            connection = engine.connect()
            opened.callback(_close, connection)
        with said.while_reading():
            _only_read(connection, timeout)
            result = connection.execution_options(
                stream_results=True, max_row_buffer=BATCH_ROWS
            ).execute(text(query.replace(":", r"\:")))
            names = list(result.keys())
            _refuse_twice(names)
            for rows in result.partitions(BATCH_ROWS):
                cells = zip(*rows, strict=True)
                yield {
                    name: [_cell(value, name) for value in column]
                    for name, column in zip(names, cells, strict=True)
                }


def _url(request: DataRequest) -> URL:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(request.location)
    except ArgumentError:
        raise LoricaError(
            Code.SITE_CONFIG, "data.source is no address of a database as SQLAlchemy writes it."
        ) from None
    if url.password is not None or any("pass" in key.lower() for key in url.query):
        raise LoricaError(Code.DATA_CREDENTIALS, "data.source holds a password.")
    password = password_of(str(request.options["password"]), request.root)
    return url.set(password=password) if password else url


def _engine(url: URL, root: Path, timeout: float) -> Engine:
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    arguments: dict[str, Any] = {}
    dialect = url.get_backend_name()
    if dialect == "postgresql":
        url = url.set(drivername="postgresql+psycopg") if "+" not in url.drivername else url
        # The session's own defaults: they hold, too, should the query end the transaction.
        arguments = {
            "connect_timeout": _CONNECT_SECONDS,
            "application_name": "lorica",
            "options": "-c default_transaction_read_only=on "
            f"-c statement_timeout={max(1, round(timeout * 1000))}",
        }
    elif dialect == "sqlite":
        path = root / Path(url.database or "").expanduser()
        if not path.is_file():
            raise LoricaError(Code.DATA_NOT_FOUND, f"There is no file {path}.")
        url = url.set(database=f"file:{path}", query={"mode": "ro", "uri": "true"})
    try:
        return create_engine(url, connect_args=arguments, poolclass=NullPool, hide_parameters=True)
    except ModuleNotFoundError as error:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            f"The database needs the package {error.name}.",
            mend="pip install 'lorica[postgresql]'"
            if dialect == "postgresql"
            else f"pip install {error.name}",
        ) from None


def _only_read(connection: Connection, timeout: float) -> None:
    """Make the transaction read-only, by the database's own word."""
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError

    dialect = connection.dialect.name
    if dialect == "sqlite":
        connection.execute(text("PRAGMA query_only = ON"))
        until = time.monotonic() + timeout
        raw: Any = connection.connection.driver_connection
        raw.set_progress_handler(lambda: time.monotonic() > until, _SQLITE_STEPS)
        return
    try:
        connection.execute(text("SET TRANSACTION READ ONLY"))
    except DBAPIError:
        raise LoricaError(
            Code.DATA_QUERY_WRITES,
            f"A database of the kind '{dialect}' does not offer transactions that only read.",
            mend="Export the records to a file, or copy them to PostgreSQL.",
        ) from None


def _close(connection: Connection) -> None:
    """End the session; one that is lost has ended."""
    from sqlalchemy.exc import SQLAlchemyError

    with suppress(SQLAlchemyError):
        connection.close()


class _Failure:
    """Coded errors of what drivers raise; the password is taken out of whatever they say."""

    def __init__(self, url: URL, timeout: float) -> None:
        self._where = url.render_as_string(hide_password=True).rpartition("@")[2]
        self._dialect = url.get_backend_name()
        self._secret = url.password or ""
        self._timeout = timeout

    @contextmanager
    def while_connecting(self) -> Iterator[None]:
        """LOR-320 for what fails."""
        yield from self._coded(lambda error: self._error(Code.DATA_UNREACHABLE, error))

    @contextmanager
    def while_reading(self) -> Iterator[None]:
        """By the state that the database gives: LOR-321, LOR-322, LOR-323 or LOR-325."""
        yield from self._coded(self._of_state)

    def _coded(self, code: Callable[[Exception], LoricaError]) -> Iterator[None]:
        from sqlalchemy.exc import SQLAlchemyError

        failed: LoricaError | None = None
        try:
            yield
        except SQLAlchemyError as error:
            failed = code(error)
        except (OSError, UnicodeDecodeError) as error:
            failed = self._error(Code.DATA_UNREACHABLE, error)
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("psycopg", "sqlite3"):
                raise
            failed = code(error)
        if failed is not None:  # outside: the driver's error, which may hold data, is no context
            raise failed

    def _of_state(self, error: Exception) -> LoricaError:
        original = getattr(error, "orig", None) or error
        state = getattr(original, "sqlstate", None) or ""
        message = str(original).lower()
        if state == "57014" or message == "interrupted":
            return LoricaError(
                Code.DATA_TIMEOUT,
                f"The query ran longer than data.timeout_seconds = {self._timeout:g}.",
            )
        if state in ("25006", "0A000") or "readonly database" in message:
            return self._error(Code.DATA_QUERY_WRITES, error)
        if state.startswith("42") or message.startswith(("no such", "near ", "incomplete input")):
            return self._error(Code.DATA_QUERY, error)
        if state.startswith("22"):
            return self._error(Code.DATA_MALFORMED, error)
        if self._dialect == "sqlite":
            return self._error(Code.DATA_MALFORMED, error)
        return self._error(Code.DATA_LOST, error)

    def _error(self, code: Code, error: Exception) -> LoricaError:
        lines = str(getattr(error, "orig", None) or error).strip().splitlines()
        said = lines[0].rstrip(".") if lines else type(error).__name__
        if self._secret:
            said = said.replace(self._secret, "***")
        return LoricaError(code, f"{self._where}: {said}.")


def _refuse_twice(names: list[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise LoricaError(
            Code.DATA_QUERY, f"The query gives two columns the name '{twice}'; use AS."
        )


def _cell(value: Any, column: str) -> Any:
    if isinstance(value, str):
        if len(value) > CELL_CHARACTERS:
            raise LoricaError(
                Code.DATA_TOO_LARGE,
                f"Column '{column}' holds a text of {len(value):,} characters; the limit is "
                f"{CELL_CHARACTERS:,}.",
            )
        return value
    if isinstance(value, bytes | memoryview | bytearray):
        raise LoricaError(Code.DATA_MALFORMED, f"Column '{column}' holds bytes, not text.")
    if isinstance(value, datetime | date | time_of_day):
        return time_form(value.isoformat())
    if isinstance(value, Decimal):
        return number_form(str(value))
    if value is None or isinstance(value, bool | int | float | list | dict):
        return json_text(value)
    return str(value)
