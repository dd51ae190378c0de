"""Signed requests: a site that names its coordinators answers nobody else.

A coordinator holds an Ed25519 key in a file and signs every request; a site lists the public keys
that it answers in ``policy.coordinators``.

Formal guarantee:
    *Claim.* A request that :func:`verify` lets pass was signed by the holder of one of the site's
    allowed keys, for exactly this site, protocol version, kind of request, run id, round, plan,
    adapter blob, part in a sealed sum, time and nonce, and that time is at most ``hours`` away from
    this machine's clock (Ed25519, RFC 8032; existential unforgeability under chosen messages, and
    the collision
    resistance of SHA-256). The signed bytes are a JSON list that begins with a constant of this
    module, so they are no other protocol's, and no two different requests have the same. The plan
    is bound by the fingerprint that is computed from the plan at hand, never by one that came with
    the message.

    *Where it holds.* The trainer verifies, in the process that holds the records, and it takes
    the kind from the method that is called: whoever controls the site's network process cannot
    turn one kind of request into another.

    *Replays.* A request to one site is none to another; one that was answered is refused when it
    comes again (:mod:`lorica.client.admission.answered`); one that never arrived is worth nothing
    after those hours.

    *Not claimed.* Signatures hide nothing, and do not hold off a coordinator that is allowed and
    malicious: that is what differential privacy is for.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import create_atomically, storage_errors
from lorica.common.wire.fields import PROTOCOL
from lorica.common.wire.messages import Kind, Request

KEY_VARIABLE = "LORICA_COORDINATOR_KEY"
"""Environment variable: path of the coordinator's key; unset or empty: requests are unsigned."""

_DOMAIN = "lorica request to a site"
_SIGNATURE_BYTES = 64
NONCE_BYTES = 16
_NONCE = re.compile(rf"[0-9a-f]{{{2 * NONCE_BYTES}}}")
_MOST_BYTES = 10_000  # of a key file


class CoordinatorKey:
    """A coordinator's private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        """``key`` stays in memory and is never printed."""
        self._key = key

    @classmethod
    def create(cls, path: Path) -> CoordinatorKey:
        """A new key, written to ``path`` for the owner's eyes alone (PEM, PKCS8, mode 0600).

        Raises:
            LoricaError: LOR-510 something is there already, LOR-60x it cannot be written.
        """
        key = Ed25519PrivateKey.generate()
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        if not create_atomically(path, content, mode=0o600):
            raise LoricaError(
                Code.COORDINATOR_KEY,
                f"{path} exists already, and a key is never overwritten.",
                mend="Choose another path, or use the key that is there.",
            )
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> CoordinatorKey:
        """The key in a file.

        Raises:
            LoricaError: LOR-510 it is no Ed25519 key in PEM, or others may read it; LOR-602.
        """
        with storage_errors(path), path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_MOST_BYTES)
        if mode & 0o077:
            raise LoricaError(
                Code.COORDINATOR_KEY,
                f"{path} has mode {mode:04o}: others than its owner may use it.",
                mend=f"chmod 600 {path}; make a new key if somebody may have read it.",
            )
        try:
            key = load_pem_private_key(content, password=None)
        except (ValueError, TypeError) as error:  # no PEM; a passphrase
            raise LoricaError(
                Code.COORDINATOR_KEY, f"{path} holds no readable private key in PEM."
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise LoricaError(Code.COORDINATOR_KEY, f"The key in {path} is not an Ed25519 key.")
        return cls(key)

    @property
    def public(self) -> str:
        """The public key, 64 hex digits: what sites list in policy.coordinators."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, request: Request, kind: Kind) -> Request:
        """The request with this coordinator's public key and signature for one kind: good for one
        answer of the site that it names, so that it is signed anew whenever it is sent."""
        nonce = secrets.token_hex(NONCE_BYTES)
        timed = replace(request, time=int(time.time()), nonce=nonce)
        signature = self._key.sign(_signed(timed, kind)).hex()
        return replace(timed, coordinator=self.public, signature=signature)


def key_from_environment() -> CoordinatorKey | None:
    """The key whose path is in LORICA_COORDINATOR_KEY; None when it names none.

    Raises:
        LoricaError: LOR-510, LOR-602 it names one that cannot be used.
    """
    path = os.environ.get(KEY_VARIABLE, "")
    return CoordinatorKey.load(Path(path)) if path else None


def verify(
    request: Request,
    kind: Kind,
    allowed: Collection[str],
    *,
    site: str,
    hours: float = 24.0,
    clock: Callable[[], float] = time.time,
) -> None:
    """Return if the request is signed, for this kind, by one of the ``allowed`` public keys.

    Args:
        request: as it came.
        kind: of the method that was called.
        allowed: public keys, 64 hex digits each.
        site: the name of the site that looks at it.
        hours: how far its time may be from the clock's.
        clock: seconds since 1970 in UTC.

    Raises:
        LoricaError: LOR-507 not signed, LOR-509 signed by another key, LOR-508 bad signature,
            LOR-512 signed for another site, LOR-710 at another time.
    """
    if not (request.coordinator and request.signature):
        raise LoricaError(
            Code.REQUEST_UNSIGNED, f"A request ({kind}, run {request.run!r:.50}) is not signed."
        )
    if request.coordinator not in allowed:
        raise LoricaError(
            Code.COORDINATOR_UNKNOWN,
            f"A request is signed with the key {request.coordinator!r:.70}, which is not among "
            f"the {len(allowed)} of policy.coordinators.",
        )
    try:
        signature = bytes.fromhex(request.signature)
        if len(signature) != _SIGNATURE_BYTES:
            raise ValueError("a signature of another length")
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(request.coordinator))
        key.verify(signature, _signed(request, kind))
    except (InvalidSignature, ValueError) as error:
        raise LoricaError(
            Code.SIGNATURE_INVALID,
            f"The signature of a request ({kind}, run {request.run!r:.50}, round {request.round}) "
            "does not fit what the request says.",
        ) from error
    if request.site != site or not _NONCE.fullmatch(request.nonce):
        raise LoricaError(
            Code.REQUEST_MISADDRESSED,
            f"A request ({kind}, run {request.run!r:.50}, round {request.round}) is signed for "
            f"{repr(request.site)[:70] if request.site else 'no site'}; this is {site!r:.70}.",
        )
    away = (clock() - request.time) / 3600
    if abs(away) > hours:
        raise LoricaError(
            Code.REQUEST_STALE,
            f"A request ({kind}, run {request.run!r:.50}, round {request.round}) was signed "
            f"{abs(away):.1f} hours {'ago' if away > 0 else 'ahead of this clock'}; at most "
            f"{hours:g} are allowed.",
        )


def _signed(request: Request, kind: Kind) -> bytes:
    """What is signed: another byte string for every other request or kind."""
    sealed = hashlib.sha256(request.sealed).hexdigest()
    what = [kind, request.run, request.round, request.plan.fingerprint, _sha256(request.blob)]
    fields = [_DOMAIN, PROTOCOL, *what, sealed, request.time, request.site, request.nonce]
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


@functools.lru_cache(maxsize=1)
def _sha256(blob: bytes) -> str:
    """Of an adapter, which a coordinator signs anew for every site."""
    return hashlib.sha256(blob).hexdigest()
