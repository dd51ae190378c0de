"""Keys and signatures: what is signed holds for that request alone."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.wire import signing
from lorica.common.wire.messages import (
    CAPABILITIES,
    EVALUATE,
    TRAIN,
    Kind,
    Request,
    pack_request,
    unpack_request,
)
from lorica.common.wire.signing import KEY_VARIABLE, CoordinatorKey, key_from_environment, verify

PLAN = RunPlan().replace(task={"labels": ["a", "b"]})
REQUEST = Request(PLAN, "run-1", 3, b"an adapter", site="north")
KINDS: list[Kind] = [CAPABILITIES, TRAIN, EVALUATE]


@pytest.fixture
def key(tmp_path: Path) -> CoordinatorKey:
    return CoordinatorKey.create(tmp_path / "key.pem")


def refused(request: Request, kind: Kind, allowed: list[str]) -> Code:
    with pytest.raises(LoricaError) as caught:
        verify(request, kind, allowed, site="north")
    return caught.value.code


@pytest.mark.parametrize("kind", KINDS)
def test_a_signed_request_passes_the_wire_and_is_known(key: CoordinatorKey, kind: Kind) -> None:
    received = unpack_request(pack_request(key.sign(REQUEST, kind)))
    verify(received, kind, ["0" * 64, key.public], site="north")
    assert (received.plan, received.run, received.blob) == (PLAN, "run-1", b"an adapter")


CHANGES: dict[str, Callable[[Request], Request]] = {
    "another plan": lambda r: replace(r, plan=PLAN.replace(privacy={"epsilon": 1e6})),
    "another adapter": lambda r: replace(r, blob=b"an adaptor"),
    "no adapter": lambda r: replace(r, blob=b""),
    "another round": lambda r: replace(r, round=4),
    "another site": lambda r: replace(r, site="south"),
    "another nonce": lambda r: replace(r, nonce="0" * 32),
    "no nonce": lambda r: replace(r, nonce=""),
    "another time": lambda r: replace(r, time=r.time + 1),
    "another run": lambda r: replace(r, run="run-2"),
    "a byte of the signature": lambda r: replace(r, signature="00" + r.signature[2:]),
    "a longer signature": lambda r: replace(r, signature=r.signature + "00"),
    "a signature with blanks": lambda r: replace(r, signature=f"{r.signature[:64]} "),
    "a signature that is not hex": lambda r: replace(r, signature="é" * 128),
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_a_request_that_is_not_the_signed_one_is_refused(key: CoordinatorKey, name: str) -> None:
    changed = CHANGES[name](key.sign(REQUEST, TRAIN))
    assert refused(changed, TRAIN, [key.public]) is Code.SIGNATURE_INVALID


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_a_signature_holds_for_one_kind(key: CoordinatorKey, kind: Kind, other: Kind) -> None:
    signed = key.sign(REQUEST, kind)
    if kind == other:
        verify(signed, other, [key.public], site="north")
    else:
        assert refused(signed, other, [key.public]) is Code.SIGNATURE_INVALID


def test_a_signature_holds_for_one_version_of_the_protocol(
    key: CoordinatorKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = key.sign(REQUEST, TRAIN)
    monkeypatch.setattr(signing, "PROTOCOL", signing.PROTOCOL + 1)
    assert refused(signed, TRAIN, [key.public]) is Code.SIGNATURE_INVALID


def test_every_signature_is_for_one_site_and_has_a_nonce_of_its_own(key: CoordinatorKey) -> None:
    first, second = key.sign(REQUEST, TRAIN), key.sign(REQUEST, TRAIN)
    assert first.nonce != second.nonce and first.signature != second.signature
    with pytest.raises(LoricaError, match="signed for 'north'; this is 'south'") as caught:
        verify(first, TRAIN, [key.public], site="south")
    assert caught.value.code is Code.REQUEST_MISADDRESSED


def test_a_stripped_signature_or_key_is_an_unsigned_request(key: CoordinatorKey) -> None:
    signed = key.sign(REQUEST, TRAIN)
    for stripped in (REQUEST, replace(signed, signature=""), replace(signed, coordinator="")):
        assert refused(stripped, TRAIN, [key.public]) is Code.REQUEST_UNSIGNED


def test_another_key_is_refused_also_under_an_allowed_name(
    key: CoordinatorKey, tmp_path: Path
) -> None:
    other = CoordinatorKey.create(tmp_path / "other.pem")
    signed = other.sign(REQUEST, TRAIN)
    assert refused(signed, TRAIN, [key.public]) is Code.COORDINATOR_UNKNOWN
    posing = replace(signed, coordinator=key.public)
    assert refused(posing, TRAIN, [key.public]) is Code.SIGNATURE_INVALID
    assert refused(replace(signed, coordinator="\x1b[2J"), TRAIN, [key.public]) is (
        Code.COORDINATOR_UNKNOWN
    )


def test_an_allowed_key_that_is_no_key_lets_nothing_pass(key: CoordinatorKey) -> None:
    posing = replace(key.sign(REQUEST, TRAIN), coordinator="f" * 63)
    assert refused(posing, TRAIN, ["f" * 63]) is Code.SIGNATURE_INVALID


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8), st.integers(0, 99), st.binary(max_size=8))))
def test_different_requests_are_signed_as_different_bytes(
    requests: list[tuple[str, int, bytes]],
) -> None:
    """Nothing of a run's name can pass for a round, a kind or an adapter."""
    made = {(fields, kind) for fields in requests for kind in KINDS}
    signed = {signing._signed(Request(PLAN, *fields), kind) for fields, kind in made}
    assert len(signed) == len(made)


def test_the_key_file_is_private_pkcs8_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    key = CoordinatorKey.create(path)
    content = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert content.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert CoordinatorKey.load(path).public == key.public
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public))
    with pytest.raises(LoricaError) as caught:
        CoordinatorKey.create(path)
    assert caught.value.code is Code.COORDINATOR_KEY
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["key.pem"]


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    CoordinatorKey.create(path)
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(LoricaError, match="mode 06") as caught:
            CoordinatorKey.load(path)
        assert caught.value.code is Code.COORDINATOR_KEY


def _pem(key: object, encryption: object) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)  # type: ignore[attr-defined,no-any-return]


def test_a_file_that_holds_no_usable_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "good.pem"
    CoordinatorKey.create(path)
    good = load_pem_private_key(path.read_bytes(), None)
    contents = {
        "empty": b"",
        "rubbish": b"\x00" * 100,
        "cut": path.read_bytes()[:60],
        "another kind": _pem(ec.generate_private_key(ec.SECP384R1()), NoEncryption()),
        "a passphrase": _pem(good, BestAvailableEncryption(b"secret")),
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(LoricaError) as caught:
            CoordinatorKey.load(path)
        assert caught.value.code is Code.COORDINATOR_KEY, name
    with pytest.raises(LoricaError) as caught:
        CoordinatorKey.load(tmp_path / "absent")
    assert caught.value.code is Code.STORAGE_DENIED


def test_the_key_is_found_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert key_from_environment() is None
    monkeypatch.setenv(KEY_VARIABLE, "")
    assert key_from_environment() is None
    made = CoordinatorKey.create(tmp_path / "key.pem")
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "key.pem"))
    found = key_from_environment()
    assert found is not None
    assert found.public == made.public
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "gone.pem"))
    with pytest.raises(LoricaError):
        key_from_environment()
