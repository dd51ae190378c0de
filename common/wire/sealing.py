"""Signed replies: a coordinator that keeps a register of sites takes no reply for another site's.

A site signs with the key that it was admitted with (EC P-384), which its node also proves to the
SuperLink; the coordinator looks the public half up in its register, under the name that the node is
registered by, never under one that a reply gives.

Formal guarantee:
    *Claim.* A reply that :func:`verify_reply` lets pass was signed by the holder of the site's
    registered key, as the answer to exactly this request (kind, run, round, site and nonce), with
    all its fields, its adapter and its counts as they are (ECDSA on P-384 with SHA-384; existential
    unforgeability under chosen messages, and the collision resistance of SHA-256). A reply of an
    earlier request, of another site, or changed on its way is refused. The signed bytes are a JSON
    list that begins with a constant of this module.

    *Not claimed.* Refusals may be unsigned: the node process refuses, too, when the trainer is
    down. So whoever holds the connection can refuse in a site's name, which it could by silence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors
from lorica.common.wire.fields import CONFIG, PROTOCOL
from lorica.common.wire.messages import Kind, Reply, Request, pack_reply

_DOMAIN = "lorica reply of a site"
_SIGNATURE = "signature"
_HASH = ec.ECDSA(hashes.SHA384())


def load_site_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The site's EC P-384 key in a file, OpenSSH form.

    Raises:
        LoricaError: LOR-723 it is no such key, or others may read it; LOR-602.
    """
    with storage_errors(path):
        mode = path.stat().st_mode & 0o777
        content = path.read_bytes()
    if mode & 0o077:
        raise LoricaError(
            Code.FEDERATION_MISSING,
            f"{path} has mode {mode:04o}: others than its owner may use the site's key.",
            mend=f"chmod 600 {path}; if somebody may have read it, remove it and ask for a new "
            "invitation.",
        )
    try:
        key = load_ssh_private_key(content, password=None)
    except ValueError as error:
        raise LoricaError(
            Code.FEDERATION_MISSING, f"{path} holds no private key in OpenSSH form."
        ) from error
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp384r1"):
        raise LoricaError(Code.FEDERATION_MISSING, f"The key in {path} is not an EC P-384 key.")
    return key


def sign_reply(
    reply: Reply, request: Request, kind: Kind, key: ec.EllipticCurvePrivateKey
) -> Reply:
    """The reply with the site's signature, as the answer to this request and to no other."""
    bare = replace(reply, signature="")
    return replace(bare, signature=key.sign(_signed(pack_reply(bare), request, kind), _HASH).hex())


def verify_reply(
    record: RecordDict, requests: Sequence[Request], kind: Kind, public_key: str
) -> None:
    """Return if a packed reply is the answer of this key's holder to one of these requests.

    Args:
        record: as it came.
        requests: all that the site was sent, at least one: it may be asked again before it answers.
        kind: of the request.
        public_key: the site's registered one, a line in OpenSSH form.

    Raises:
        LoricaError: LOR-514 it is not.
    """
    fields = record.get(CONFIG)
    given = fields.get(_SIGNATURE, "") if isinstance(fields, ConfigRecord) else ""
    try:
        key = load_ssh_public_key(public_key.encode())
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(given, str):
            raise ValueError("another kind of key or signature")
        signature = bytes.fromhex(given)
        if any(_fits(key, signature, _signed(record, one, kind)) for one in requests):
            return
    except (ValueError, UnsupportedAlgorithm):  # no key, not hex
        pass
    about, what = requests[0], "does not fit" if given else "is missing from"
    raise LoricaError(
        Code.REPLY_FORGED,
        f"The signature of the registered site {about.site!r:.70} {what} a reply in its name "
        f"({kind}, run {about.run!r:.50}, round {about.round}).",
    )


def _fits(key: ec.EllipticCurvePublicKey, signature: bytes, content: bytes) -> bool:
    try:
        key.verify(signature, content, _HASH)
    except InvalidSignature:
        return False
    return True


def _signed(record: RecordDict, request: Request, kind: Kind) -> bytes:
    """What is signed: another byte string for every other reply or request."""
    asked = [kind, request.run, request.round, request.site, request.nonce]
    parts = [[name, _content(record[name])] for name in sorted(record)]
    return json.dumps([_DOMAIN, PROTOCOL, asked, parts], separators=(",", ":")).encode("ascii")


def _content(part: object) -> object:
    """A record's content in JSON: fields and numbers as they are, arrays by their hash."""
    if isinstance(part, ConfigRecord):
        return [[key, part[key]] for key in sorted(part) if key != _SIGNATURE]
    if isinstance(part, MetricRecord):
        return [[key, part[key]] for key in sorted(part)]
    if isinstance(part, ArrayRecord):
        return [
            [key, a.dtype, list(a.shape), a.stype, hashlib.sha256(a.data).hexdigest()]
            for key, a in sorted(part.items())
        ]
    raise ValueError("a record of another kind")
