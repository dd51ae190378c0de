"""``lorica coordinator init | invite | admit | revoke | rotate | sites | start | check``."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from lorica.common.display.console import Console
from lorica.common.display.tables import Table
from lorica.common.errors import Code, LoricaError
from lorica.server.coordinator.cli.run import HomeOption

_MOST_DAYS = 90


def coordinator_init(
    address: Annotated[
        str, typer.Argument(help="Where sites will reach this coordinator, HOST or HOST:PORT.")
    ],
    home: HomeOption = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="A further host name or IP address of this machine; repeatable."),
    ] = None,
    listen: Annotated[str, typer.Option(help="Address of this machine to listen on.")] = "0.0.0.0",
    private_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the SuperLink on 127.0.0.1.")
    ] = 8440,
) -> None:
    """Set a coordinator up: authority, certificates, signing key, folders."""
    from lorica.server.coordinator.home import CoordinatorHome, default_home, first_config
    from lorica.server.coordinator.setup import create_coordinator

    bare = ":" not in address or address.endswith("]")
    address = f"{address}:8443" if bare else address
    config = first_config(address, names=name or [], listen=listen, private_port=private_port)
    where = CoordinatorHome(home or default_home())
    key = create_coordinator(where, config)
    _say(
        f"A coordinator is set up in {where.path}. Sites will reach it at {address}.\n"
        f"Its public key, for policy.coordinators of sites (invitations hold it):\n{key.public}\n"
        f"Next: `lorica coordinator start`, and `lorica coordinator invite NAME` for each site."
    )


def coordinator_invite(
    site: Annotated[str, typer.Argument(help="The site's name, such as northgate-hospital.")],
    home: HomeOption = None,
    days: Annotated[
        int, typer.Option(min=1, max=_MOST_DAYS, help="How long the invitation may be used.")
    ] = 7,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write it to this file instead of the terminal."),
    ] = None,
) -> None:
    """Make an invitation for a site: one line, good for one registration.

    Whoever has it can register in the site's place: send it by a way that both sides trust.
    """
    from lorica.common.machine.files import create_atomically
    from lorica.server.coordinator.setup import invite

    invitation = invite(_home(home), site, timedelta(days=days))
    token = invitation.token()
    if out is None:
        sys.stdout.write(f"{token}\n")
    elif not create_atomically(out, f"{token}\n".encode(), mode=0o600):
        raise LoricaError(Code.FEDERATION_EXISTS, f"{out} exists already.")
    _say(
        f"For {site}, until {invitation.expires:%Y-%m-%d %H:%M} UTC. Send it secretly; the site "
        "runs `lorica site init --token …` with it and sends registration.json back."
    )


def coordinator_admit(
    request: Annotated[Path, typer.Argument(help="The site's registration.json.")],
    home: HomeOption = None,
) -> None:
    """Admit a site: check its registration request against its invitation, take in its key."""
    from lorica.common.wire.invitation import key_fingerprint
    from lorica.server.coordinator.setup import admit

    entry, known = admit(_home(home), request)
    _say(
        f"{entry.name} is admitted with the key {key_fingerprint(entry.public_key)}"
        + ("." if known else "; the services take it in when they start.")
    )


def coordinator_revoke(
    site: Annotated[str, typer.Argument(help="The site's name.")], home: HomeOption = None
) -> None:
    """Put a site out at once, of a run that goes on, too."""
    from lorica.server.coordinator.setup import revoke

    _, known = revoke(_home(home), site)
    _say(
        f"{site} is revoked"
        + (" and out." if known else "; the services do not run, and it is out before they serve.")
    )


def coordinator_rotate(home: HomeOption = None) -> None:
    """Renew the server's certificates, with all names of coordinator.toml."""
    from lorica.server.coordinator.certificates import days_left, read_certificate
    from lorica.server.coordinator.setup import public_pair, renew_certificates

    where = _home(home)
    renew_certificates(where)
    left = days_left(read_certificate(public_pair(where).certificate))
    _say(
        f"Renewed for {left:.0f} days. Sites need nothing new; a proxy that runs has it already, "
        "the SuperLink takes its own at its next start."
    )


def coordinator_sites(home: HomeOption = None) -> None:
    """List the sites: invited, admitted or revoked, and which are online."""
    from lorica.common.machine.lock import holder
    from lorica.common.wire.invitation import key_fingerprint
    from lorica.server.coordinator.control import Control, key_bytes
    from lorica.server.coordinator.register import Register

    where = _home(home)
    where.config()
    online = set()
    if holder(where.lock) is not None:
        online = {node.public_key for node in Control(where).nodes() if node.online}
    table = Table("site", "state", "since", "online", "key", box=None)
    for entry in Register(where.register).sites().values():
        key = entry.public_key
        table.add_row(
            entry.name,
            entry.state + (" (invited)" if entry.secret and entry.state != "invited" else ""),
            f"{entry.since:%Y-%m-%d %H:%M}",
            "yes" if key and key_bytes(key) in online else "no",
            key_fingerprint(key) if key else "",
        )
    Console(soft_wrap=True).print(table)


def coordinator_start(home: HomeOption = None) -> None:
    """Run SuperLink, proxy and monitor, and keep runs going. Ends on SIGTERM."""
    from lorica.server.coordinator.services import start

    _show_log()
    start(_home(home))


def coordinator_check(home: HomeOption = None) -> None:
    """Check keys, certificates, disk, proxy, versions, and the services if they run."""
    from lorica.common.machine.checks import report
    from lorica.server.coordinator.check import check_coordinator

    report(check_coordinator(_home(home)), Console(highlight=False, soft_wrap=True))


def coordinator_bundle(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the bundle (.fab) here.")
    ] = None,
) -> None:
    """Print the SHA-256 of the code that this version ships to sites, for them to approve."""
    from lorica.common.machine.files import write_atomically
    from lorica.common.wire.bundle import build_bundle, bundle_sha256

    bundle = build_bundle()
    if out is not None:
        write_atomically(out, bundle)
    sys.stdout.write(f"{bundle_sha256(bundle)}\n")


def add_commands(app: typer.Typer) -> None:
    """Add all of these to ``lorica coordinator``."""
    for name, command in (
        ("init", coordinator_init),
        ("invite", coordinator_invite),
        ("admit", coordinator_admit),
        ("revoke", coordinator_revoke),
        ("rotate", coordinator_rotate),
        ("sites", coordinator_sites),
        ("start", coordinator_start),
        ("check", coordinator_check),
        ("bundle", coordinator_bundle),
    ):
        app.command(name)(command)


def _home(given: Path | None):  # type: ignore[no-untyped-def]
    from lorica.server.coordinator.home import CoordinatorHome, default_home

    return CoordinatorHome(given or default_home())


def _say(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


def _show_log() -> None:
    from lorica.common.machine.logs import set_up_logging

    set_up_logging()
