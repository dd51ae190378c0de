"""Databases: PostgreSQL for real, and SQLite; what is read, and what is refused."""

from __future__ import annotations

import socket
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lorica.client.config.data import SiteData
from lorica.client.config.site import SiteConfig
from lorica.client.data.reading import read_records, shown, site_batches
from lorica.common.data.batches import BATCH_ROWS
from lorica.common.errors import Code, LoricaError
from tests.postgresql_server import WITH_PASSWORD

QUERY = "SELECT note AS text, department AS label, patient AS unit FROM letters ORDER BY id"
ROWS = 2 * BATCH_ROWS + 10
SECRET, PASSWORD = "SECRET_OF_THE_TEST", "a password"


@pytest.fixture
def admin(postgresql_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A session that may do everything, in a database with letters."""
    plain = postgresql_url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE letters (id int, note text, department text, patient text, seen date)"
        )
        connection.execute(
            "INSERT INTO letters SELECT i, 'note 100% ' || i, CASE i % 2 WHEN 0 THEN 'heart' ELSE "
            f"'skin' END, 'p' || i / 3, '2026-01-01' FROM generate_series(1, {ROWS}) AS i"
        )
        yield connection


@pytest.fixture
def database(
    postgresql_url: str, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> str:
    """Its URL for a user who needs a password, which is in a variable, and who might write."""
    there = admin.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [WITH_PASSWORD]).fetchone()
    if there is None:
        admin.execute(f"CREATE ROLE {WITH_PASSWORD} SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
    monkeypatch.setenv(SECRET, PASSWORD)
    return f"postgresql+psycopg://{WITH_PASSWORD}@{postgresql_url.partition('@')[2]}"


def asked(database: str, **more: Any) -> dict[str, Any]:
    return {"source": database, "query": QUERY, "unit": "unit", "password": f"env:{SECRET}"} | more


def test_records_are_the_rows_of_the_query(database: str, read: Callable[..., Any]) -> None:
    records = read(**asked(database))
    assert len(records) == ROWS
    assert (records.texts[0], records.labels[0], records.units[0]) == ("note 100% 1", "skin", "p0")
    assert (records.texts[-1], records.units[-1]) == (f"note 100% {ROWS}", f"p{ROWS // 3}")


def test_a_password_may_lie_in_a_private_file(
    database: str, tmp_path: Path, read: Callable[..., Any], refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv(SECRET)
    path = tmp_path / "db.password"
    path.write_text(f"{PASSWORD}\n")
    path.chmod(0o640)
    given = asked(database, password="file:db.password")
    assert "0640" in refused(Code.DATA_CREDENTIALS, **given)
    path.chmod(0o600)
    assert len(read(**given)) == ROWS
    path.write_text("")
    assert "empty" in refused(Code.DATA_CREDENTIALS, **given)
    path.unlink()
    refused(Code.DATA_CREDENTIALS, **given)
    assert SECRET in refused(Code.DATA_CREDENTIALS, **asked(database))


def test_a_password_in_site_toml_is_refused_and_not_repeated(refused: Callable[..., str]) -> None:
    for source in ("postgresql://reader:hunter2@db/x", "postgresql://db/x?password=hunter2"):
        assert "hunter2" not in refused(Code.DATA_CREDENTIALS, source=source, query=QUERY)


def test_a_wrong_password_is_a_sentence_without_it(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(SECRET, "hunter2-wrong")
    config = SiteConfig.model_validate({"site": {"name": "n"}, "data": asked(database)})
    with pytest.raises(LoricaError) as caught:
        read_records(config, tmp_path)
    assert caught.value.code is Code.DATA_UNREACHABLE
    assert "password authentication failed" in caught.value.detail
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_a_sentence(refused: Callable[..., str]) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else can answer
        taken.bind(("127.0.0.1", 0))
        source = f"postgresql+psycopg://reader@127.0.0.1:{taken.getsockname()[1]}/x"
        assert "refused" in refused(Code.DATA_UNREACHABLE, source=source, query=QUERY).lower()


def test_a_connection_that_drops_while_rows_come_loses_all_of_them(
    database: str, admin: psycopg.Connection[Any], tmp_path: Path
) -> None:
    """The first batch is there, the server ends the session: a coded error, no part of the data."""
    data = SiteData.model_validate(asked(database))
    batches = site_batches(data, tmp_path, None)
    assert len(next(batches)["text"]) == BATCH_ROWS
    ended = admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'lorica'"
    ).fetchall()
    assert ended == [(True,)]
    with pytest.raises(LoricaError) as caught:
        list(batches)
    assert caught.value.code is Code.DATA_LOST


def test_only_a_batch_of_rows_is_asked_for_at_a_time(
    database: str, admin: psycopg.Connection[Any], tmp_path: Path
) -> None:
    """The server's cursor is open while the reader holds one batch."""
    batches = site_batches(SiteData.model_validate(asked(database)), tmp_path, None)
    next(batches)
    (said,) = admin.execute(
        "SELECT query FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'lorica'"
    ).fetchone() or ("",)
    assert "FETCH" in said
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ALTER TABLE letters RENAME COLUMN note TO body", "note"),
        ("DROP TABLE letters", "letters"),
        ("ALTER TABLE letters DROP COLUMN department", "department"),
    ],
)
def test_a_changed_schema_is_named(
    database: str, admin: psycopg.Connection[Any], refused: Callable[..., str], change: str,
    said: str,
) -> None:  # fmt: skip
    admin.execute(change)
    assert said in refused(Code.DATA_QUERY, **asked(database))


def test_a_column_that_the_query_does_not_give_is_named(
    database: str, refused: Callable[..., str]
) -> None:
    detail = refused(Code.DATA_COLUMN, **asked(database, query="SELECT note, 'x' FROM letters"))
    assert "'text'" in detail and "note" in detail
    twice = asked(database, query="SELECT note AS text, department AS text FROM letters")
    assert "'text'" in refused(Code.DATA_QUERY, **twice)


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM letters",
        "INSERT INTO letters VALUES (1, 'x', 'y', 'z', now())",
        "WITH gone AS (DELETE FROM letters RETURNING *) SELECT note AS text FROM gone",
        "SELECT * INTO copied FROM letters",
        "SELECT 1 AS text; COMMIT; DELETE FROM letters",
        "SELECT 1 AS text; ROLLBACK; DROP TABLE letters",
        "select nextval('counter') AS text",
        "SELECT pg_advisory_lock(1) AS text; CREATE TABLE copied (i int)",
    ],
)
def test_a_query_that_writes_changes_nothing(
    database: str, admin: psycopg.Connection[Any], tmp_path: Path, query: str
) -> None:
    admin.execute("CREATE SEQUENCE counter")
    config = SiteConfig.model_validate(
        {"site": {"name": "n"}, "data": asked(database, query=query)}
    )
    with pytest.raises(LoricaError) as caught:
        read_records(config, tmp_path)
    assert caught.value.code in (Code.DATA_QUERY_WRITES, Code.DATA_QUERY)
    assert admin.execute("SELECT count(*) FROM letters").fetchone() == (ROWS,)
    assert admin.execute("SELECT is_called FROM counter").fetchone() == (False,)
    assert admin.execute("SELECT to_regclass('copied')").fetchone() == (None,)


def test_a_query_that_takes_too_long_is_ended(database: str, refused: Callable[..., str]) -> None:
    given = asked(database, query="SELECT pg_sleep(60)::text AS text", timeout_seconds=0.2)
    assert "0.2" in refused(Code.DATA_TIMEOUT, **given)


def test_values_of_any_type_become_text(database: str, tmp_path: Path) -> None:
    query = (
        "SELECT 1::int8 AS a, 2.50::numeric AS b, true AS c, NULL AS d, 'NaN'::float8 AS e, "
        "ARRAY['x', 'y'] AS f, '{\"k\": 1}'::jsonb AS g, DATE '2026-02-03' AS h, ':x %s' AS i"
    )
    data = SiteData.model_validate(asked(database, query=query))
    (batch,) = site_batches(data, tmp_path, None)
    assert {name: cells[0] for name, cells in batch.items()} == {
        "a": "1", "b": "2.5", "c": "true", "d": "", "e": "", "f": '["x", "y"]', "g": '{"k": 1}',
        "h": "2026-02-03", "i": ":x %s",
    }  # fmt: skip


def test_an_empty_result_and_an_empty_query_are_refused(
    database: str, refused: Callable[..., str]
) -> None:
    refused(Code.DATA_MALFORMED, **asked(database, query=f"SELECT * FROM ({QUERY}) t LIMIT 0"))
    refused(Code.SITE_CONFIG, **asked(database, query=" ; "))


def test_messages_name_a_database_without_its_user() -> None:
    assert shown(SiteData(source="postgresql://me@db/x")) == "postgresql://db/x"
    assert shown(SiteData(source="letters@home.csv")) == "letters@home.csv"


@pytest.fixture
def sqlite(tmp_path: Path) -> Path:
    path = tmp_path / "letters.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE letters (text, label)")
        connection.executemany(
            "INSERT INTO letters VALUES (?, ?)", [("a", "x"), ("b", "y"), ("c", 3)]
        )
    connection.close()
    return path


class TestSqlite:
    def test_is_read_from_the_sites_folder(self, sqlite: Path, read: Callable[..., Any]) -> None:
        records = read(source="sqlite:///letters.db", query="SELECT * FROM letters;")
        assert (records.texts, records.labels) == (["a", "b", "c"], ["x", "y", "3"])

    def test_is_not_written_nor_made(
        self, sqlite: Path, tmp_path: Path, refused: Callable[..., str]
    ) -> None:
        before = sqlite.read_bytes()
        query = "WITH a AS (SELECT 1) DELETE FROM letters"
        refused(Code.DATA_QUERY_WRITES, source="sqlite:///letters.db", query=query)
        assert sqlite.read_bytes() == before
        refused(Code.DATA_NOT_FOUND, source="sqlite:///absent.db", query="SELECT 1")
        assert [path.name for path in tmp_path.iterdir()] == ["letters.db"]

    def test_faults_are_sentences(
        self, sqlite: Path, tmp_path: Path, refused: Callable[..., str]
    ) -> None:
        source = "sqlite:///letters.db"
        refused(Code.DATA_QUERY, source=source, query="SELECT body FROM letters")
        refused(Code.DATA_QUERY, source=source, query="SELECT FROM FROM")
        endless = (
            "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i FROM n) SELECT max(i) FROM n"
        )
        refused(Code.DATA_TIMEOUT, source=source, query=endless, timeout_seconds=0.1)
        (tmp_path / "no.db").write_bytes(b"not a database at all, but long enough" * 100)
        refused(Code.DATA_MALFORMED, source="sqlite:///no.db", query="SELECT * FROM letters")
