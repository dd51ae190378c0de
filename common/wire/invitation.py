"""Invitations and registration requests: how a site and a coordinator come to know each other.

The coordinator's operators make an invitation and give it to the site's, by a way that both
trust: it holds a secret that is good for one registration. The site makes its own key, which
never leaves its machine, and answers with a request that holds the public half.

Formal guarantee:
    *Claim.* A request that :meth:`Registration.check` lets pass was made by a holder of the
    invitation's secret (HMAC-SHA-256 over name and public key, keyed with the 256-bit secret), and
    by a holder of the private key whose public half it holds (ECDSA on P-384 with SHA-384 over
    the same bytes). Whoever sees or changes the request alone can therefore neither have another
    key registered nor register a key that is not theirs.

    *Not claimed.* Whoever sees the invitation can use it: it must travel secretly. The request is
    no secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import zlib
from datetime import UTC, datetime
from typing import Annotated, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from lorica.common.errors import Code, LoricaError

SECRET_BYTES = 32
TOKEN_PREFIX = "lorica-invitation-1."
_DOMAIN = "lorica registration 1"
_MOST_CHARACTERS = 100_000
_ADDRESS = re.compile(r"^(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})$")

SiteName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""What a site may be called in a federation: it becomes file names and log lines."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Invitation(_Frozen):
    """What a site needs to know of a coordinator, and a secret for one registration."""

    site: SiteName
    """The name the site will have."""
    address: str
    """Where sites reach the coordinator, host:port."""
    authority: str
    """Certificate of the authority that signs the coordinator's, PEM."""
    coordinator: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """The coordinator's public key, for policy.coordinators."""
    expires: datetime
    """Until when it may be used, with time zone."""
    secret: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """The one-time secret, hex."""

    def token(self) -> str:
        """The invitation as one line of text, with a checksum against cut copies."""
        packed = zlib.compress(self.model_dump_json().encode(), 9)
        body = base64.urlsafe_b64encode(packed).decode().rstrip("=")
        return f"{TOKEN_PREFIX}{body}.{_checksum(body)}"

    @classmethod
    def from_token(cls, token: str) -> Self:
        """The inverse of :meth:`token`; spaces and line breaks are ignored.

        Raises:
            LoricaError: LOR-720 it is not whole, or not an invitation.
        """
        text = "".join(token.split())
        body, dot, checksum = text.removeprefix(TOKEN_PREFIX).rpartition(".")
        if not text.startswith(TOKEN_PREFIX) or not dot or len(text) > _MOST_CHARACTERS:
            raise LoricaError(
                Code.INVITATION_INVALID,
                f"This is no invitation: it does not have the form {TOKEN_PREFIX}….",
            )
        if not hmac.compare_digest(_checksum(body).encode(), checksum.encode()):
            raise LoricaError(
                Code.INVITATION_INVALID,
                "The invitation is not whole: characters are missing or were changed.",
                mend="Copy the whole line that `lorica coordinator invite` printed, or use --out.",
            )
        try:
            packed = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
            unpacked = zlib.decompressobj().decompress(packed, _MOST_CHARACTERS)
            found = cls.model_validate_json(unpacked)
        except (ValueError, zlib.error, ValidationError) as error:
            raise LoricaError(
                Code.INVITATION_INVALID, "The invitation comes from another version of Lorica."
            ) from error
        parse_address(found.address)
        return found

    def require_current(self) -> None:
        """Return if it has not expired. Raises LOR-720."""
        if datetime.now(UTC) >= self.expires:
            raise LoricaError(
                Code.INVITATION_INVALID,
                f"The invitation of {self.site} expired on {self.expires:%Y-%m-%d %H:%M} UTC; the "
                f"clock of this machine says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
            )


class Registration(_Frozen):
    """A site's answer to an invitation: its public key, sealed twice."""

    site: SiteName
    public_key: str
    """The site's EC P-384 key, one line in OpenSSH form."""
    seal: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """HMAC with the invitation's secret."""
    signature: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){1,200}$")]
    """ECDSA with the key itself."""

    @classmethod
    def make(cls, invitation: Invitation, key: ec.EllipticCurvePrivateKey) -> Self:
        """The request for an invitation and a new key."""
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        content = _sealed(invitation.site, public)
        return cls(
            site=invitation.site,
            public_key=public,
            seal=_hmac(invitation.secret, content),
            signature=key.sign(content, ec.ECDSA(hashes.SHA384())).hex(),
        )

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The request in a file's text. Raises LOR-721."""
        try:
            return cls.model_validate_json(text[:_MOST_CHARACTERS])
        except ValidationError as error:
            raise LoricaError(
                Code.REGISTRATION_REFUSED, "This is no registration request of a site."
            ) from error

    def check(self, secret: str) -> None:
        """Return if the request was made with this invitation's secret and its own key.

        Raises:
            LoricaError: LOR-721 what does not fit.
        """
        content = _sealed(self.site, self.public_key)
        if not hmac.compare_digest(_hmac(secret, content), self.seal):
            raise LoricaError(
                Code.REGISTRATION_REFUSED,
                f"The request of {self.site} was not made with its invitation, or was changed.",
            )
        try:
            key = load_ssh_public_key(self.public_key.encode())
            if not (isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp384r1"):
                raise ValueError("another kind of key")
            key.verify(bytes.fromhex(self.signature), content, ec.ECDSA(hashes.SHA384()))
        except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
            raise LoricaError(
                Code.REGISTRATION_REFUSED,
                f"The request of {self.site} is not signed with the EC P-384 key that it holds.",
            ) from error


def parse_address(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of "host:port". Raises LOR-720."""
    match = _ADDRESS.match(address)
    port = int(match["port"]) if match else 0
    if match is None or not 1 <= port <= 65535:
        raise LoricaError(
            Code.INVITATION_INVALID, f"The address {address!r:.80} is not of the form host:port."
        )
    return match["host"].strip("[]"), port


def key_fingerprint(public_key: str) -> str:
    """SHA-256 of an OpenSSH public key as ssh-keygen shows it."""
    blob = base64.b64decode(public_key.split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _sealed(site: str, public_key: str) -> bytes:
    return json.dumps([_DOMAIN, site, public_key], separators=(",", ":")).encode()


def _hmac(secret: str, content: bytes) -> str:
    return hmac.new(bytes.fromhex(secret), content, hashlib.sha256).hexdigest()


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:8]
