"""The register of sites: who was invited, admitted, revoked. One file, the truth of it.

The SuperLink keeps keys of its own; the services bring it in line with this register at every
start and after every change, so that a SuperLink that forgot everything loses no site, and a site
that was revoked while nothing ran is out when it does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors, write_atomically
from lorica.common.wire.invitation import SECRET_BYTES, Registration, SiteName

Standing = Literal["invited", "admitted", "revoked"]


class SiteEntry(BaseModel):
    """One site."""

    model_config = ConfigDict(extra="forbid")

    name: SiteName
    state: Standing
    since: datetime
    """Of the state."""
    secret: str = ""
    """Of an open invitation; gone once it was used."""
    expires: datetime | None = None
    """When the open invitation ends."""
    public_key: str = ""
    """OpenSSH form, once admitted."""
    retired: list[str] = []
    """Keys that it had before: Flower never takes a key again that was put out."""


_ENTRIES = TypeAdapter(dict[str, SiteEntry])


class Register:
    """sites.json. Every change is one transaction under a lock between processes."""

    def __init__(self, path: Path) -> None:
        """``path``: the file, made by the first change."""
        self._path = path

    def sites(self) -> dict[str, SiteEntry]:
        """All sites by name.

        Raises:
            LoricaError: LOR-723 the file is damaged.
        """
        try:
            return _ENTRIES.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            raise LoricaError(
                Code.FEDERATION_MISSING, f"The register {self._path} cannot be read."
            ) from error

    def invite(self, name: str, lifetime: timedelta) -> SiteEntry:
        """An entry with a new secret. An open invitation of the same site is replaced.

        A site that was admitted or revoked may be invited again: with its new key it takes the
        place of the old one, once it is admitted.

        Raises:
            LoricaError: LOR-720 no such name is possible.
        """
        now = datetime.now(UTC)
        try:
            SiteEntry(name=name, state="invited", since=now)
        except ValidationError:
            raise LoricaError(
                Code.INVITATION_INVALID,
                f"{name!r:.80} cannot be a site's name.",
                mend="Use up to 63 small letters, digits, '.', '_' and '-', a letter or digit "
                "first; for example northgate-hospital.",
            ) from None
        with self._changing() as sites:
            entry = sites.get(name) or SiteEntry(name=name, state="invited", since=now)
            entry.secret = secrets.token_hex(SECRET_BYTES)
            entry.expires = now + lifetime
            sites[name] = entry
        return entry

    def admit(self, registration: Registration) -> SiteEntry:
        """Check a request against its invitation and take its key in.

        Raises:
            LoricaError: LOR-728 never invited, LOR-720 no open invitation, LOR-721 forged.
        """
        with self._changing() as sites:
            entry = sites.get(registration.site)
            if entry is None:
                raise LoricaError(
                    Code.SITE_UNKNOWN, f"No site {registration.site!r:.80} was ever invited."
                )
            if entry.state == "admitted" and entry.public_key == registration.public_key:
                return entry  # the same request twice
            if not entry.secret or entry.expires is None:
                raise LoricaError(
                    Code.INVITATION_INVALID, f"{entry.name} has no open invitation: it was used."
                )
            registration.check(entry.secret)
            if datetime.now(UTC) >= entry.expires:
                raise LoricaError(
                    Code.INVITATION_INVALID,
                    f"The invitation of {entry.name} expired on "
                    f"{entry.expires:%Y-%m-%d %H:%M} UTC.",
                )
            for other in sites.values():
                if registration.public_key in (other.public_key, *other.retired):
                    raise LoricaError(
                        Code.REGISTRATION_REFUSED,
                        f"That key is, or was, the key of site {other.name}; a site that is "
                        "invited again needs a new one.",
                    )
            if entry.public_key:
                entry.retired.append(entry.public_key)
            entry.public_key, entry.secret, entry.expires = registration.public_key, "", None
            entry.state, entry.since = "admitted", datetime.now(UTC)
        return entry

    def revoke(self, name: str) -> SiteEntry:
        """Put a site out: its key and any open invitation are good for nothing from now on.

        Raises:
            LoricaError: LOR-728 there is no such site.
        """
        with self._changing() as sites:
            if name not in sites:
                known = ", ".join(sorted(sites)) or "none"
                raise LoricaError(
                    Code.SITE_UNKNOWN, f"There is no site {name!r:.80}; known: {known}."
                )
            entry = sites[name]
            entry.state, entry.since = "revoked", datetime.now(UTC)
            entry.secret, entry.expires = "", None
            if entry.public_key:
                entry.retired.append(entry.public_key)
            entry.public_key = ""
        return entry

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, SiteEntry]]:
        lock = self._path.with_suffix(".lock")
        with storage_errors(lock):
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            sites = self.sites()
            yield sites
            with _private_files():
                write_atomically(self._path, _ENTRIES.dump_json(sites, indent=1))
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _private_files() -> Iterator[None]:
    """New files are for their owner alone from their first byte."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
