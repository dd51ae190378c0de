"""``lorica monitor`` as people call it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorica.common.errors import LoricaError
from lorica.server.monitor.access.accounts import Accounts
from lorica.server.monitor.access.log import AuditLog
from lorica.server.monitor.access.tokens import Tokens
from lorica.server.monitor.cli import app
from lorica.server.store import RunStore

PASSWORD = "correct horse battery"


def call(store: RunStore, *words: str, given: str = "") -> str:
    """Call the command; what it prints. Raises what it ends with."""
    url = ["--store", str(store.engine.url.database)]
    done = CliRunner().invoke(app, [*words, *url], input=given)
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_accounts_are_made_listed_changed_and_removed(store: RunStore) -> None:
    call(store, "user", "add", "Olga", "--role", "operator", given=f"{PASSWORD}\n{PASSWORD}\n")
    assert Accounts(store).check("olga", PASSWORD) is not None
    assert "olga" in call(store, "user", "list") and "operator" in call(store, "user", "list")
    call(store, "user", "password", "olga", "--password-stdin", given="another good password\n")
    assert Accounts(store).check("olga", PASSWORD) is None
    assert Accounts(store).check("olga", "another good password") is not None
    call(store, "user", "remove", "olga")
    assert not Accounts(store).any()
    done = [entry.action for entry in AuditLog(store).page(1, 10)[0]]
    assert done == ["account removed", "password changed", "account added"]
    assert all("command line" in entry.who for entry in AuditLog(store).page(1, 10)[0])


def test_a_weak_password_makes_no_account(store: RunStore) -> None:
    with pytest.raises(LoricaError, match="LOR-824"):
        call(store, "user", "add", "olga", "--password-stdin", given="short\n")
    assert not Accounts(store).any()


def test_a_token_is_printed_once_and_listed_without_its_secret(store: RunStore) -> None:
    secret = call(store, "token", "add", "grafana", "--days", "30").splitlines()[0]
    assert Tokens(store).find(secret) == "grafana"
    listed = call(store, "token", "list")
    assert "grafana" in listed and secret not in listed
    call(store, "token", "revoke", "grafana")
    assert Tokens(store).find(secret) is None


def test_without_an_account_another_address_is_refused(store: RunStore) -> None:
    with pytest.raises(LoricaError, match="LOR-821"):
        call(store, "--host", "0.0.0.0", "--port", "0")
    with pytest.raises(LoricaError, match="LOR-821"):
        call(store, "--public-url", "https://monitor.example.org", "--port", "0")


def test_with_an_account_another_address_still_needs_tls(store: RunStore) -> None:
    Accounts(store).add("olga", "operator", PASSWORD)
    with pytest.raises(LoricaError, match="LOR-822"):
        call(store, "--host", "0.0.0.0", "--port", "0")


def test_a_port_in_use_is_said(store: RunStore) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LoricaError, match="LOR-829"):
            call(store, "--port", str(taken.getsockname()[1]))


def test_a_store_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["user", "list", "--store", str(tmp_path)])
    assert isinstance(done.exception, LoricaError)
