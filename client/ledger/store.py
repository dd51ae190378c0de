"""The ledger's SQLite file: entries that cannot be changed, and the replies beside them.

Write-ahead log with ``synchronous=FULL``: a commit is on the disk when it returns, and a killed
process leaves either the whole transaction or none of it. Writers begin with ``BEGIN
IMMEDIATE``, so two processes decide one after the other. Triggers refuse updates, deletions and
replacements of entries: against slips; against intent there are chain and anchor. The file must
be on a local disk: SQLite's write-ahead log does not work over a network.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from lorica.client.ledger.chain import Entry
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors

_APPLICATION, _VERSION = 0x4C6F7263, 1  # "Lorc"

_SCHEMA = f"""
CREATE TABLE entries (
  number INTEGER PRIMARY KEY CHECK (number >= 1),
  body TEXT NOT NULL, hash TEXT NOT NULL
);
CREATE TABLE replies (
  number INTEGER PRIMARY KEY, reply BLOB NOT NULL
);
CREATE TRIGGER entries_are_not_changed BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'entries of the privacy ledger are never changed'); END;
CREATE TRIGGER entries_are_not_removed BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'entries of the privacy ledger are never removed'); END;
CREATE TRIGGER entries_are_only_appended BEFORE INSERT ON entries
WHEN NEW.number <> (SELECT coalesce(max(number), 0) + 1 FROM entries)
BEGIN SELECT RAISE(ABORT, 'entries of the privacy ledger are only appended'); END;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""

_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_REFUSED = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
)


class Store:
    """One connection to a ledger's database, in a file or in memory."""

    def __init__(
        self, path: Path | None, *, create: bool, timeout: float = 30.0, read_only: bool = False
    ) -> None:
        """
        Args:
            path: the file; None keeps everything in memory.
            create: make the file if it is absent or empty.
            timeout: longest wait for another process's lock, seconds.
            read_only: never write, not even to recover.

        Raises:
            LoricaError: LOR-614 no such ledger, LOR-612 not a ledger, LOR-611, LOR-60x.
        """
        self.path = path
        self._timeout = timeout
        self._identity: tuple[int, int] | None = None
        if path is not None:
            self._find(path, create=create)
        with self.errors():
            self._connection = sqlite3.connect(
                ":memory:"
                if path is None
                else f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}",
                uri=path is not None,
                timeout=timeout,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            self._prepare(create=create, read_only=read_only)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the connection; committed entries stay."""
        self._connection.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that no other process can write beside; all or nothing."""
        with self._transaction("BEGIN IMMEDIATE"):
            yield

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A transaction that sees one state throughout."""
        with self._transaction("BEGIN"):
            yield

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """Entries with numbers above ``after``, ascending."""
        rows = self._connection.execute(
            "SELECT number, body, hash FROM entries WHERE number > ? ORDER BY number", (after,)
        )
        for number, body, digest in rows:
            if not (isinstance(number, int) and isinstance(body, str) and isinstance(digest, str)):
                raise LoricaError(
                    Code.LEDGER_DAMAGED, f"Entry {number!r} of the ledger is not text."
                )
            yield Entry(number, body, digest)

    def hash_of(self, number: int) -> str | None:
        """Hash of the entry with this number; None when there is none."""
        row = self._connection.execute(
            "SELECT hash FROM entries WHERE number = ?", (number,)
        ).fetchone()
        return None if row is None else str(row[0])

    def append(self, entry: Entry) -> None:
        """Write the next entry."""
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?)", (entry.number, entry.body, entry.hash)
        )

    def reply(self, number: int) -> bytes | None:
        """The reply whose answer is entry ``number``, if it is still kept."""
        row = self._connection.execute(
            "SELECT reply FROM replies WHERE number = ?", (number,)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def keep_reply(self, number: int, reply: bytes, drop: list[int]) -> None:
        """Keep the reply of entry ``number`` and forget those of the entries ``drop``."""
        self._connection.executemany("DELETE FROM replies WHERE number = ?", [(n,) for n in drop])
        self._connection.execute("INSERT INTO replies VALUES (?, ?)", (number, reply))

    def kept(self) -> list[int]:
        """Numbers of the answers whose replies are kept, ascending."""
        rows = self._connection.execute("SELECT number FROM replies ORDER BY number")
        return [int(number) for (number,) in rows]

    def structural_problem(self) -> str | None:
        """What SQLite's own check finds wrong with the file, in its words; None if nothing."""
        found = [str(row[0]) for row in self._connection.execute("PRAGMA integrity_check(3)")]
        return None if found == ["ok"] else "; ".join(found)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn SQLite's errors into coded ones."""
        where = "The ledger" if self.path is None else f"The ledger {self.path}"
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter from a damaged schema
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
            if code in _LOCKED:
                raise LoricaError(
                    Code.LEDGER_LOCKED,
                    f"{where} was locked by another process for {self._timeout:g} seconds.",
                ) from error
            if code == sqlite3.SQLITE_FULL:
                raise LoricaError(
                    Code.STORAGE_FULL, f"{where} could not be written: {error}."
                ) from error
            if code in _REFUSED:
                raise LoricaError(
                    Code.STORAGE_DENIED, f"{where} could not be read or written: {error}."
                ) from error
            raise LoricaError(Code.LEDGER_DAMAGED, f"{where} is damaged: {error}.") from error

    def _find(self, path: Path, *, create: bool) -> None:
        with storage_errors(path):
            try:
                empty = path.stat().st_size == 0
            except FileNotFoundError:
                empty = True
                if create:
                    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            if empty and not create:
                raise LoricaError(Code.LEDGER_MISSING, f"There is no privacy ledger at {path}.")
            self._identity = _identity(path)

    def _prepare(self, *, create: bool, read_only: bool) -> None:
        pragma = self._connection.execute
        with self.errors():
            pragma("PRAGMA trusted_schema = OFF")
            fresh = not pragma("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if fresh and not create:
                raise LoricaError(Code.LEDGER_MISSING, f"{self.path} holds no privacy ledger.")
            if not fresh:
                self._check_kind()
            if not read_only:
                pragma("PRAGMA journal_mode = WAL")
                pragma("PRAGMA synchronous = FULL")
                pragma("PRAGMA fullfsync = ON")  # macOS: past the drive's own cache
        if fresh:
            with self.writing():
                if not pragma("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    for statement in _statements(_SCHEMA):
                        pragma(statement)

    def _check_kind(self) -> None:
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if (application, version) != (_APPLICATION, _VERSION):
            raise LoricaError(
                Code.LEDGER_DAMAGED, f"{self.path} is no privacy ledger of version {_VERSION}."
            )

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        if self.path is not None and _identity(self.path) != self._identity:
            raise LoricaError(
                Code.LEDGER_ROLLED_BACK,
                f"{self.path} was removed or replaced by another file while it was in use.",
            )
        with self.errors():
            self._connection.execute(begin)
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                raise


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.strip().splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
