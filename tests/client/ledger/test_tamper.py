"""No edit, deletion, reordering, truncation or restored copy goes unnoticed."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from lorica.client.ledger.anchor import Anchor, anchor_path, write_anchor
from lorica.client.ledger.chain import hash_of
from lorica.client.ledger.verify import inspect
from lorica.common.errors import Code, LoricaError
from tests.client.ledger.helpers import answer, charge, open_ledger

FOUND = (Code.LEDGER_DAMAGED, Code.LEDGER_ROLLED_BACK)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed ledger: opening, then five rounds charged and answered; 11 entries."""
    path = tmp_path / "ledger.sqlite"
    ledger = open_ledger(path)
    for round in range(1, 6):
        answer(ledger, round)
    ledger.close()
    return path


def raw(path: Path) -> sqlite3.Connection:
    """A connection with the triggers out of the way, as an attacker would have it."""
    connection = sqlite3.connect(path, isolation_level=None)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='trigger'"):
        connection.execute(f"DROP TRIGGER {name}")
    return connection


def rehash(connection: sqlite3.Connection, start: int) -> str:
    """Make the chain consistent again from entry ``start`` on; returns the new head."""
    query = "SELECT hash FROM entries WHERE number = ?"
    previous = connection.execute(query, (start - 1,)).fetchone()[0]
    rows = connection.execute(
        "SELECT number, body FROM entries WHERE number >= ? ORDER BY number", (start,)
    ).fetchall()
    for number, body in rows:
        previous = hash_of(previous, body)
        connection.execute("UPDATE entries SET hash = ? WHERE number = ?", (previous, number))
    return str(previous)


def cheapen(connection: sqlite3.Connection, number: int = 4) -> None:
    """Make a charge look cheaper than it was."""
    query = "SELECT body FROM entries WHERE number = ?"
    body = json.loads(connection.execute(query, (number,)).fetchone()[0])
    body["events"][0]["sigma"] = 1000.0
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    connection.execute("UPDATE entries SET body = ? WHERE number = ?", (text, number))


def cheapen_and_rehash_one(connection: sqlite3.Connection) -> None:
    cheapen(connection)
    previous, body = (
        connection.execute(f"SELECT {column} FROM entries WHERE number = {number}").fetchone()[0]
        for column, number in (("hash", 3), ("body", 4))
    )
    connection.execute("UPDATE entries SET hash = ? WHERE number = 4", (hash_of(previous, body),))


def cheapen_and_rehash_all(connection: sqlite3.Connection) -> None:
    cheapen(connection)
    rehash(connection, 4)


def delete_in_the_middle(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM entries WHERE number = 4")


def delete_and_renumber(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM entries WHERE number IN (4, 5)")
    connection.execute("UPDATE entries SET number = number - 2 WHERE number > 5")


def swap(connection: sqlite3.Connection) -> None:
    for old, new in ((4, 99), (6, 4), (99, 6)):
        connection.execute("UPDATE entries SET number = ? WHERE number = ?", (new, old))


def cut_the_tail(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM entries WHERE number > 7")


def cut_everything(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM entries")


def mend_a_link(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE entries SET hash = upper(hash) WHERE number = 6")


def not_text(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE entries SET body = CAST(body AS BLOB) WHERE number = 6")


ATTACKS = [
    cheapen,
    cheapen_and_rehash_one,
    cheapen_and_rehash_all,
    delete_in_the_middle,
    delete_and_renumber,
    swap,
    cut_the_tail,
    cut_everything,
    mend_a_link,
    not_text,
]


class TestTampering:
    @pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
    def test_tampering_is_found_by_verify_and_stops_the_site(
        self, path: Path, attack: Callable[[sqlite3.Connection], None]
    ) -> None:
        assert inspect(path).sound
        connection = raw(path)
        attack(connection)
        connection.close()
        assert not inspect(path).sound
        with pytest.raises(LoricaError) as caught:
            open_ledger(path)
        assert caught.value.code in FOUND

    @pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
    def test_tampering_with_a_ledger_in_use_never_lowers_its_epsilon(
        self, path: Path, attack: Callable[[sqlite3.Connection], None]
    ) -> None:
        ledger = open_ledger(path)
        before = ledger.spending("run").lifetime
        connection = raw(path)
        attack(connection)
        connection.close()
        try:
            assert ledger.charge(charge(6)).lifetime > before
        except LoricaError as error:
            assert error.code in FOUND

    @pytest.mark.parametrize(
        "body",
        [
            "{}",
            "[]",
            "7",
            "not json",
            "[" * 100_000,
            '{"number":4,"entry":"charge"}',
            {"events": [{"sigma": -1.0, "q": 0.1, "steps": 4}]},
            {"events": [{"sigma": 20.0, "q": 2.0, "steps": 4}]},
            {"events": [{"sigma": 20.0, "q": 0.1, "steps": 0}]},
            {"events": [{"sigma": 20.0, "q": 0.1, "steps": float("inf")}]},
            {"events": [{"sigma": 10**400, "q": 0.1, "steps": 4}]},
            {"events": "none"},
            {"run": ""},
            {"run_epsilon": "much"},
            {"time": "yesterday"},
            {"time": "9999-12-31T23:59:59-23:00"},
            {"entry": ["charge"]},
        ],
        ids=lambda body: repr(body)[:40],
    )
    def test_an_impossible_entry_in_an_unbroken_chain_is_damage_in_a_sentence(self, path, body):
        connection = raw(path)
        query = "SELECT body FROM entries WHERE number = 4"
        if isinstance(body, dict):
            body = json.dumps(json.loads(connection.execute(query).fetchone()[0]) | body)
        connection.execute("UPDATE entries SET body = ? WHERE number = 4", (body,))
        head = rehash(connection, 4)
        connection.close()
        write_anchor(anchor_path(path), Anchor(inspect(path).history.ledger, 11, head))
        with pytest.raises(LoricaError) as caught:
            open_ledger(path)
        assert caught.value.code is Code.LEDGER_DAMAGED
        assert "Entry 4" in caught.value.detail
        assert any("Entry 4" in problem for problem in inspect(path).problems)

    def test_verify_names_the_changed_entries(self, path):
        connection = raw(path)
        cheapen(connection, 4)
        cheapen(connection, 8)
        connection.close()
        problems = inspect(path).problems
        assert [text.split(" of ")[0] for text in problems] == ["Entry 4", "Entry 8"]

    def test_an_older_copy_put_back_is_found(self, path, tmp_path):
        copy = tmp_path / "copy"
        shutil.copy(path, copy)
        ledger = open_ledger(path)
        answer(ledger, 6)
        ledger.close()
        shutil.copy(copy, path)
        assert "older copy" in inspect(path).problems[0]
        with pytest.raises(LoricaError) as caught:
            open_ledger(path)
        assert caught.value.code is Code.LEDGER_ROLLED_BACK

    def test_a_copy_put_back_under_a_running_site_is_found(self, path, tmp_path):
        copy = tmp_path / "copy"
        shutil.copy(path, copy)
        ledger = open_ledger(path)
        answer(ledger, 6)
        copy.replace(path)
        for call in (lambda: ledger.charge(charge(7)), lambda: ledger.spending("run")):
            with pytest.raises(LoricaError) as caught:
                call()
            assert caught.value.code is Code.LEDGER_ROLLED_BACK

    def test_a_removed_ledger_does_not_start_from_zero(self, path):
        path.unlink()
        assert "gone" in inspect(path).problems[0]
        with pytest.raises(LoricaError) as caught:
            open_ledger(path)
        assert caught.value.code is Code.LEDGER_ROLLED_BACK

    @pytest.mark.parametrize("content", [None, b"", b"\xff\x00", b"{}", b'{"number": 3}'])
    def test_a_removed_or_damaged_anchor_stops_the_site(self, path, content):
        anchor_path(path).unlink()
        if content is not None:
            anchor_path(path).write_bytes(content)
        assert not inspect(path).sound
        with pytest.raises(LoricaError) as caught:
            open_ledger(path)
        assert caught.value.code is Code.LEDGER_DAMAGED

    def test_another_ledger_of_the_same_data_does_not_fit_the_anchor(self, path, tmp_path):
        other = tmp_path / "other"
        ledger = open_ledger(other)
        for round in range(1, 10):
            answer(ledger, round)
        ledger.close()
        shutil.copy(other, path)
        assert not inspect(path).sound

    def test_whoever_rewrites_ledger_and_anchor_is_found_by_an_exported_head(self, path):
        sound = inspect(path)
        witness = (sound.history.count, sound.history.head)
        connection = raw(path)
        cheapen(connection)
        head = rehash(connection, 4)
        connection.close()
        write_anchor(anchor_path(path), Anchor(sound.history.ledger, sound.history.count, head))
        assert inspect(path).sound  # nothing on this machine can tell
        assert not inspect(path, heads=[witness]).sound

    def test_a_cheaper_record_of_the_total_is_found_by_composing_anew(self, path):
        connection = raw(path)
        number = 10
        query = "SELECT body FROM entries WHERE number = ?"
        body = json.loads(connection.execute(query, (number,)).fetchone()[0])
        body["spent"]["lifetime"] /= 2
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        connection.execute("UPDATE entries SET body = ? WHERE number = ?", (text, number))
        head = rehash(connection, number)
        connection.close()
        write_anchor(anchor_path(path), Anchor(inspect(path).history.ledger, 11, head))
        assert inspect(path).sound
        assert "compose to" in inspect(path, recompose=True).problems[0]

    def test_a_changed_reply_is_not_sent(self, path):
        connection = raw(path)
        connection.execute("UPDATE replies SET reply = ?", (b"another",))
        connection.close()
        assert "reply" in inspect(path).problems[0]
        with pytest.raises(LoricaError) as caught:
            open_ledger(path).stored("run", 5, fingerprint="a" * 64)
        assert caught.value.code is Code.LEDGER_DAMAGED

    def test_a_foreign_database_is_not_taken_for_a_ledger(self, tmp_path):
        path = tmp_path / "other.sqlite"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE patients (name TEXT)")
        with pytest.raises(LoricaError) as caught:
            open_ledger(path)
        assert caught.value.code is Code.LEDGER_DAMAGED


class TestTriggers:
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE entries SET body = '{}' WHERE number = 2",
            "UPDATE entries SET number = 99 WHERE number = 2",
            "DELETE FROM entries WHERE number = 2",
            "INSERT OR REPLACE INTO entries VALUES (2, '{}', '')",
            "INSERT INTO entries VALUES (40, '{}', '')",
        ],
    )
    def test_the_database_refuses_to_change_entries(self, path, statement):
        with (
            sqlite3.connect(path) as connection,
            pytest.raises(sqlite3.IntegrityError, match="privacy ledger"),
        ):
            connection.execute(statement)
        assert inspect(path).sound
