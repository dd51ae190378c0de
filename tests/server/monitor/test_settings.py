"""When the monitor refuses to start, and which requests are meant for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorica.common.errors import LoricaError
from lorica.server.monitor.access.settings import Settings, check


@pytest.mark.parametrize(
    ("given", "accounts", "code"),
    [
        ({}, False, ""),
        ({"host": "localhost"}, False, ""),
        ({"host": "::1"}, False, ""),
        ({"host": "0.0.0.0"}, False, "LOR-821"),
        ({"host": "::"}, False, "LOR-821"),
        ({"host": "192.0.2.1"}, False, "LOR-821"),
        ({"public_url": "https://monitor.example.org"}, False, "LOR-821"),
        ({"host": "0.0.0.0"}, True, "LOR-822"),
        ({"public_url": "https://monitor.example.org"}, True, ""),
        ({"host": "0.0.0.0", "public_url": "http://10.0.0.5:8600"}, True, ""),
        ({"public_url": "monitor.example.org"}, True, "LOR-820"),
        ({"public_url": "https://monitor.example.org/lorica"}, True, "LOR-820"),
        ({"certificate": Path("cert.pem")}, True, "LOR-820"),
        ({"certificate": Path("no.pem"), "key": Path("no.key")}, True, "LOR-820"),
    ],
)
def test_what_would_leave_the_room_open_is_refused(
    given: dict[str, Any], accounts: bool, code: str
) -> None:
    if not code:
        check(Settings(**given), accounts=accounts)
        return
    with pytest.raises(LoricaError) as caught:
        check(Settings(**given), accounts=accounts)
    assert caught.value.code.value == code


def test_own_names_and_addresses_are_answered_and_no_other() -> None:
    settings = Settings(public_url="https://monitor.example.org")
    for host in ("127.0.0.1:8600", "localhost:1", "[::1]:8600", "10.1.2.3", "monitor.example.org"):
        assert settings.answers_to(host), host
    for host in (
        "",
        "evil.example",
        "127.0.0.1.evil.example",
        "monitor.example.org.evil",
        "[",
        "a b",
    ):
        assert not settings.answers_to(host), host


def test_only_the_own_origin_is_own() -> None:
    settings = Settings(public_url="https://monitor.example.org")
    assert settings.own_origin("http://127.0.0.1:8600", "127.0.0.1:8600")
    assert settings.own_origin("https://monitor.example.org", "10.0.0.5:8600")
    for origin in (
        "null",
        "",
        "https://evil.example",
        "http://127.0.0.1:9999",
        "file://",
        "http://[",
    ):
        assert not settings.own_origin(origin, "127.0.0.1:8600"), origin
