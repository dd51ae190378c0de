"""Accounts, sessions, tokens and the limit of tries, as the store has them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import select, text

from lorica.common.errors import LoricaError
from lorica.server.monitor.access.accounts import _HASHER as REAL_HASHER
from lorica.server.monitor.access.accounts import Accounts
from lorica.server.monitor.access.login_limit import (
    TRIES_OF_ACCOUNT,
    TRIES_OF_ADDRESS,
    TRIES_OF_PAIR,
    WINDOW_SECONDS,
    LoginLimit,
)
from lorica.server.monitor.access.sessions import IDLE_SECONDS, LIFE_SECONDS, Sessions
from lorica.server.monitor.access.tokens import Tokens
from lorica.server.store import RunStore
from lorica.server.store.account_tables import ApiToken, User, UserSession

PASSWORD = "a b c d e f g h"


def test_passwords_are_hashed_as_rfc_9106_recommends_for_little_memory() -> None:
    hashed = REAL_HASHER.hash(PASSWORD)
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")  # its second recommended option


def test_password_is_kept_as_argon2id_and_nowhere_in_the_clear(store: RunStore) -> None:
    Accounts(store).add("ada", "viewer", PASSWORD)
    with store.reading() as session:
        kept = session.scalar(select(User.password_hash).where(User.name == "ada"))
        assert kept is not None and kept.startswith("$argon2id$")
    store.close()
    assert PASSWORD.encode() not in Path(str(store.engine.url.database)).read_bytes()


def test_check_accepts_the_password_alone_and_names_in_any_case(store: RunStore) -> None:
    accounts = Accounts(store)
    accounts.add("Ada", "operator", PASSWORD)
    person = accounts.check("ADA ", PASSWORD)
    assert person is not None and (person.name, person.role) == ("ada", "operator")
    assert accounts.check("ada", PASSWORD + "x") is None
    assert accounts.check("nobody", PASSWORD) is None
    assert accounts.check("' OR 1=1 --", PASSWORD) is None


@pytest.mark.parametrize(
    ("name", "role", "password", "code"),
    [
        ("", "viewer", PASSWORD, "LOR-823"),
        ("a b", "viewer", PASSWORD, "LOR-823"),
        ("<b>", "viewer", PASSWORD, "LOR-823"),
        ("local", "viewer", PASSWORD, "LOR-823"),
        ("x" * 65, "viewer", PASSWORD, "LOR-823"),
        ("ada", "admin", PASSWORD, "LOR-823"),
        ("ada", "viewer", "short", "LOR-824"),
        ("ada", "viewer", "aaaaaaaaaaaaaaaa", "LOR-824"),
        ("ada", "viewer", "x" * 2000, "LOR-824"),
        ("countess", "viewer", "Countess-1234", "LOR-824"),
    ],
)
def test_accounts_that_cannot_be_are_refused(
    store: RunStore, name: str, role: str, password: str, code: str
) -> None:
    with pytest.raises(LoricaError) as caught:
        Accounts(store).add(name, role, password)
    assert caught.value.code.value == code
    assert not Accounts(store).any()


def test_an_account_is_made_once(store: RunStore) -> None:
    Accounts(store).add("ada", "viewer", PASSWORD)
    with pytest.raises(LoricaError, match="already"):
        Accounts(store).add("Ada", "operator", PASSWORD)


def test_a_new_password_ends_all_sessions_but_the_one_kept(store: RunStore) -> None:
    accounts, sessions = Accounts(store), Sessions(store)
    ada = accounts.add("ada", "viewer", PASSWORD)
    here, there = sessions.open(ada.id, "a"), sessions.open(ada.id, "b")
    kept = sessions.find(here)
    assert kept is not None
    accounts.set_password("ada", "another one of those", keep=kept.digest)
    assert sessions.find(here) is not None
    assert sessions.find(there) is None
    assert accounts.check("ada", PASSWORD) is None


def test_a_removed_account_has_no_sessions(store: RunStore) -> None:
    accounts, sessions = Accounts(store), Sessions(store)
    value = sessions.open(accounts.add("ada", "viewer", PASSWORD).id, "a")
    accounts.remove("ada")
    assert sessions.find(value) is None
    with pytest.raises(LoricaError, match="LOR-823"):
        accounts.remove("ada")


def test_a_session_is_found_by_its_id_alone_and_kept_as_a_hash(store: RunStore) -> None:
    sessions = Sessions(store)
    value = sessions.open(Accounts(store).add("ada", "viewer", PASSWORD).id, "a")
    found = sessions.find(value)
    assert found is not None
    assert sessions.find(found.digest) is None
    assert sessions.find(value[:-1] + ("A" if value[-1] != "A" else "B")) is None
    assert sessions.find("") is None and sessions.find("x" * 5000) is None
    with store.reading() as session:
        rows = session.execute(text("SELECT * FROM user_sessions")).all()
    assert value not in str(rows)


def test_a_session_ends_unused_and_cannot_be_drawn_out_for_ever(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = Sessions(store)
    value = sessions.open(Accounts(store).add("ada", "viewer", PASSWORD).id, "a")
    begun = time.time()
    now = begun
    monkeypatch.setattr("lorica.server.monitor.access.sessions.time.time", lambda: now)
    while now < begun + LIFE_SECONDS:
        assert sessions.find(value) is not None
        now += IDLE_SECONDS - 100
    assert sessions.find(value) is None  # used all the time, and yet over

    other = sessions.open(1, "a")
    now += IDLE_SECONDS + 1
    assert sessions.find(other) is None
    sessions.open(1, "a")
    with store.reading() as session:
        assert len(session.scalars(select(UserSession)).all()) == 1  # ended ones are swept


def test_a_token_is_shown_once_and_valid_until_revoked(store: RunStore) -> None:
    tokens = Tokens(store)
    secret = tokens.add("prometheus")
    assert tokens.find(secret) == "prometheus"
    assert tokens.find(secret + "x") is None and tokens.find("") is None
    with store.reading() as session:
        kept = session.scalars(select(ApiToken)).one()
    assert secret not in (kept.sha256, kept.prefix) and kept.last_used is not None
    with pytest.raises(LoricaError, match="already"):
        tokens.add("prometheus")
    tokens.revoke("prometheus")
    assert tokens.find(secret) is None and tokens.all() == []
    with pytest.raises(LoricaError, match="LOR-825"):
        tokens.revoke("prometheus")


def test_a_token_ends_with_its_days(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(store)
    secret = tokens.add("short", days=1)
    ends = time.time() + 86400
    monkeypatch.setattr("lorica.server.monitor.access.tokens.time.time", lambda: ends + 1)
    assert tokens.find(secret) is None
    for days in (0.0, -1.0, float("nan")):
        with pytest.raises(LoricaError, match="LOR-825"):
            tokens.add("never", days=days)


@pytest.mark.parametrize(
    ("tries", "most"),
    [
        ([("ada", "a")] * TRIES_OF_PAIR, TRIES_OF_PAIR),
        ([(f"n{i}", "a") for i in range(TRIES_OF_ADDRESS)], TRIES_OF_ADDRESS),
        ([("ada", f"{i}") for i in range(TRIES_OF_ACCOUNT)], TRIES_OF_ACCOUNT),
    ],
)
def test_tries_are_limited_by_pair_address_and_account(
    store: RunStore, tries: list[tuple[str, str]], most: int
) -> None:
    now = 1_000_000.0
    limit = LoginLimit(store, lambda: now)
    assert [limit.attempt(*pair) for pair in tries] == [0.0] * most
    assert 0 < limit.attempt("ADA ", "a") <= WINDOW_SECONDS
    assert limit.attempt("other", "elsewhere") == 0.0
    now += WINDOW_SECONDS
    assert limit.attempt("ada", "a") == 0.0


def test_a_success_forgets_the_tries_before_it(store: RunStore) -> None:
    limit = LoginLimit(store)
    for _ in range(3 * TRIES_OF_PAIR):
        assert limit.attempt("ada", "a") == 0.0
        limit.succeeded("ada", "a")


def test_tries_outlast_a_restart(store: RunStore) -> None:
    for _ in range(TRIES_OF_PAIR):
        LoginLimit(store).attempt("ada", "a")
    assert LoginLimit(store).attempt("ada", "a") > 0
