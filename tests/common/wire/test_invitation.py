"""Invitations and registration requests: whole or refused, bound to secret and key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from lorica.common.errors import Code, LoricaError
from lorica.common.wire.invitation import Invitation, Registration, parse_address

INVITATION = Invitation(
    site="north",
    address="coordinator.example.org:8443",
    authority="-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    coordinator="ab" * 32,
    expires=datetime.now(UTC) + timedelta(days=7),
    secret="cd" * 32,
)
KEY = ec.generate_private_key(ec.SECP384R1())


def refusal(code: Code, token: str) -> str:
    with pytest.raises(LoricaError) as caught:
        Invitation.from_token(token)
    assert caught.value.code is code
    return str(caught.value)


def test_a_token_gives_the_invitation_back_whatever_mail_did_to_its_lines() -> None:
    token = INVITATION.token()
    assert "\n" not in token
    broken = "\n  ".join(token[i : i + 60] for i in range(0, len(token), 60))
    assert Invitation.from_token(token) == Invitation.from_token(f" {broken}\n") == INVITATION


@given(st.integers(min_value=0), st.sampled_from("ABCxyz019-_."))
def test_a_token_with_any_character_changed_or_cut_is_refused(where: int, character: str) -> None:
    token = INVITATION.token()
    at = where % len(token)
    for changed in (
        token[:at] + character + token[at + 1 :],
        token[:at],
        token[:at] + token[at + 1 :],
    ):
        if changed != token:
            refusal(Code.INVITATION_INVALID, changed)


@pytest.mark.parametrize("token", ["", "hello", "lorica-invitation-1.", "lorica-invitation-1.x.y"])
def test_what_is_no_invitation_is_refused(token: str) -> None:
    refusal(Code.INVITATION_INVALID, token)


def test_an_expired_invitation_is_refused_with_both_times() -> None:
    old = INVITATION.model_copy(update={"expires": datetime(2020, 1, 2, 3, 4, tzinfo=UTC)})
    with pytest.raises(LoricaError, match="2020-01-02 03:04"):
        old.require_current()
    INVITATION.require_current()


def test_a_request_holds_for_its_own_secret_alone() -> None:
    request = Registration.make(INVITATION, KEY)
    request.check(INVITATION.secret)
    with pytest.raises(LoricaError) as caught:
        request.check("ee" * 32)
    assert caught.value.code is Code.REGISTRATION_REFUSED


def test_a_request_holds_neither_the_secret_nor_the_private_key() -> None:
    text = Registration.make(INVITATION, KEY).model_dump_json()
    assert INVITATION.secret not in text
    number = KEY.private_numbers().private_value
    assert f"{number:x}" not in text.lower() and "PRIVATE" not in text


def test_another_key_or_name_in_a_request_is_refused() -> None:
    request = Registration.make(INVITATION, KEY)
    other = Registration.make(INVITATION, ec.generate_private_key(ec.SECP384R1()))
    for changed in (
        {"public_key": other.public_key},
        {"site": "south"},
        {"public_key": other.public_key, "seal": other.seal},  # holder of the secret, not the key
        {"signature": "00" * 100},
    ):
        with pytest.raises(LoricaError) as caught:
            request.model_copy(update=changed).check(INVITATION.secret)
        assert caught.value.code is Code.REGISTRATION_REFUSED


def test_a_key_on_another_curve_is_refused() -> None:
    small = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(LoricaError, match="P-384"):
        Registration.make(INVITATION, small).check(INVITATION.secret)


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("a.example:1", ("a.example", 1)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
        ("[2001:db8::1]:8443", ("2001:db8::1", 8443)),
    ],
)
def test_addresses_are_host_and_port(address: str, parsed: tuple[str, int]) -> None:
    assert parse_address(address) == parsed


@pytest.mark.parametrize("address", ["a", "a:", ":1", "a:0", "a:65536", "a b:1", "a:1/x", "::1:80"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(LoricaError):
        parse_address(address)
