"""Setting a coordinator up, inviting and admitting sites, renewing certificates."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.lock import holder
from lorica.common.wire.invitation import Invitation, Registration
from lorica.common.wire.signing import CoordinatorKey
from lorica.server.coordinator.certificates import (
    LOOPBACK,
    Pair,
    authority_pair,
    create_authority,
    issue,
)
from lorica.server.coordinator.control import Control, key_bytes
from lorica.server.coordinator.home import CoordinatorConfig, CoordinatorHome
from lorica.server.coordinator.register import Register, SiteEntry


def public_pair(home: CoordinatorHome) -> Pair:
    """The certificate that sites see."""
    return Pair(home.tls / "public.crt", home.tls / "public.key")


def private_pair(home: CoordinatorHome) -> Pair:
    """The certificate of the SuperLink on the loopback interface."""
    return Pair(home.tls / "private.crt", home.tls / "private.key")


def create_coordinator(home: CoordinatorHome, config: CoordinatorConfig) -> CoordinatorKey:
    """Make a coordinator's folder: settings, signing key, authority, certificates.

    Returns:
        The key that will sign requests.

    Raises:
        LoricaError: LOR-722 there is one already, LOR-724 a name that no certificate can hold,
            LOR-60x.
    """
    home.create(config)
    key = CoordinatorKey.create(home.signing_key)
    create_authority(home.authority, config.host)
    renew_certificates(home)
    return key


def renew_certificates(home: CoordinatorHome) -> None:
    """New server certificates by the same authority; a proxy that runs takes them at once.

    The SuperLink's own, on the loopback interface, is taken at the next start.

    Raises:
        LoricaError: LOR-724 the authority's key is not there.
    """
    config = home.config()
    issue(home.authority, private_pair(home), LOOPBACK)
    issue(home.authority, public_pair(home), [config.host, *config.names, *LOOPBACK])
    process = holder(home.lock)
    if process:
        os.kill(process, signal.SIGHUP)


def invite(home: CoordinatorHome, name: str, lifetime: timedelta) -> Invitation:
    """An invitation for a site, good once and until it expires.

    Raises:
        LoricaError: LOR-720 no such name is possible, LOR-723 no coordinator here.
    """
    config = home.config()
    authority = authority_pair(home.authority).certificate
    if not authority.exists():
        raise LoricaError(Code.FEDERATION_MISSING, f"There is no {authority}.")
    public = CoordinatorKey.load(home.signing_key).public
    entry = Register(home.register).invite(name, lifetime)
    assert entry.expires is not None
    return Invitation(
        site=name,
        address=config.address,
        authority=authority.read_text(),
        coordinator=public,
        expires=entry.expires,
        secret=entry.secret,
    )


def admit(home: CoordinatorHome, request: Path) -> tuple[SiteEntry, bool]:
    """Admit the site that made a registration request.

    Returns:
        The site, and whether the SuperLink knows of it already (else at its next start).

    Raises:
        LoricaError: as of :meth:`Register.admit`.
    """
    home.config()
    try:
        text = request.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LoricaError(
            Code.REGISTRATION_REFUSED, f"The request {request} cannot be read."
        ) from error
    entry = Register(home.register).admit(Registration.from_text(text))
    return entry, align_if_running(home)


def revoke(home: CoordinatorHome, name: str) -> tuple[SiteEntry, bool]:
    """Put a site out at once, of a run that goes on, too.

    Returns:
        The site, and whether the SuperLink knows of it already (else before it serves again).

    Raises:
        LoricaError: LOR-728 there is no such site.
    """
    home.config()
    entry = Register(home.register).revoke(name)
    return entry, align_if_running(home)


def align_if_running(home: CoordinatorHome) -> bool:
    """Bring a SuperLink that runs in line with the register; False when none runs.

    Raises:
        LoricaError: LOR-727 one runs and does not answer.
    """
    if holder(home.lock) is None:
        return False
    align(Control(home), Register(home.register))
    return True


def align(control: Control, register: Register) -> list[str]:
    """Register every admitted site's key with the SuperLink and put every other key out.

    Returns:
        What was changed, in words.
    """
    wanted = {
        key_bytes(site.public_key): site.name
        for site in register.sites().values()
        if site.state == "admitted"
    }
    changes = []
    known = set()
    for node in control.nodes():
        if node.public_key in wanted:
            known.add(node.public_key)
        else:
            control.unregister(node.node)
            changes.append(f"put out node {node.node} ({node.name or 'unnamed'})")
    for site in register.sites().values():
        if site.state == "admitted" and key_bytes(site.public_key) not in known:
            node_id = control.register(site.public_key, site.name)
            changes.append(f"registered {site.name} as node {node_id}")
    return changes
