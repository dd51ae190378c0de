"""A site joins a federation: its key and its request to be registered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from lorica.client.config.federation import SiteFederation
from lorica.common.errors import LoricaError
from lorica.common.machine.files import create_atomically, storage_errors, write_atomically
from lorica.common.wire.invitation import Invitation, Registration
from lorica.common.wire.sealing import load_site_key

REQUEST = "registration.json"


@dataclass(frozen=True)
class Joined:
    """What `lorica site init` wrote."""

    invitation: Invitation
    registration: Registration
    request: Path


def join(folder: Path, token: str) -> Joined:
    """Make the site's key and its registration request, and keep the authority's certificate.

    Every invitation gets a new key, and the one before lies beside it as node.key.old; but the
    same invitation twice gives the same request.

    Args:
        folder: the site's; made when absent, for its owner's eyes alone.
        token: the invitation, as one line.

    Raises:
        LoricaError: LOR-720 the invitation is not whole or has expired, LOR-60x.
    """
    invitation = Invitation.from_token(token)
    invitation.require_current()
    with storage_errors(folder):
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
    settings = SiteFederation()
    key, request = folder / settings.key, folder / REQUEST
    registration = _made_before(request, invitation) if key.exists() else None
    if registration is None:
        with storage_errors(key):
            if key.exists():
                key.rename(key.with_name(f"{key.name}.old"))
        registration = Registration.make(invitation, site_key(key))
        write_atomically(request, registration.model_dump_json(indent=1) + "\n")
    write_atomically(folder / settings.authority, invitation.authority)
    return Joined(invitation, registration, request)


def _made_before(request: Path, invitation: Invitation) -> Registration | None:
    """The request that was made with this very invitation, if there is one."""
    try:
        found = Registration.from_text(request.read_text(encoding="utf-8"))
        found.check(invitation.secret)
    except (OSError, UnicodeDecodeError, LoricaError):
        return None
    return found if found.site == invitation.site else None


def site_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The EC P-384 key in a file, made when there is none: OpenSSH form, mode 0600.

    Raises:
        LoricaError: LOR-723 it is no such key, or others may read it.
    """
    if not path.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        content = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        if create_atomically(path, content, mode=0o600):
            public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
            write_atomically(path.with_suffix(".pub"), public + b"\n")
            return key
    return load_site_key(path)
