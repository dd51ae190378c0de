"""``lorica site init | start | check``: a site on a machine of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lorica.client.cli.options import SITE_TOML, ConfigOption
from lorica.common.display.console import Console
from lorica.common.errors import Code, LoricaError
from lorica.common.wire.invitation import TOKEN_PREFIX


def site_init(
    token: Annotated[
        str,
        typer.Option(
            help="The coordinator's invitation: the line itself, the path of a file that holds "
            "it, or - for standard input."
        ),
    ],
    data: Annotated[
        str, typer.Option(help="The records: a file, a folder, or a database (docs/data.md).")
    ],
    config: ConfigOption = SITE_TOML,
    text: Annotated[str, typer.Option(help="Name of the column with the text.")] = "text",
    label: Annotated[str, typer.Option(help="Name of the column with the label.")] = "label",
) -> None:
    """Make this site's key and registration request, and a site.toml with every setting.

    The private key is made here and never leaves this machine. An existing site.toml is kept.
    """
    from lorica.client.config.site import documented_site
    from lorica.client.node.joining import join
    from lorica.client.site.check import check_site
    from lorica.common.machine.checks import report
    from lorica.common.machine.files import write_atomically
    from lorica.common.wire.invitation import key_fingerprint

    joined = join(config.resolve().parent, _token(token))
    invitation = joined.invitation
    console = Console(stderr=True, highlight=False)
    kept, folder = config.exists(), config.resolve().parent
    if kept:
        console.print(
            f"{config} is kept as it is. It needs these:\n[federation]\n"
            f'address = "{invitation.address}"\n[policy]\ncoordinators = '
            f'["{invitation.coordinator}"]',
            markup=False,
            soft_wrap=True,
        )
    else:

        def write(units: int) -> None:
            content = documented_site(
                invitation.site,
                _from(folder, data),
                coordinator=invitation.coordinator,
                address=invitation.address,
                units=units,
                text=text,
                label=label,
            )
            write_atomically(config, content)
            config.chmod(0o600)

        write(0)
        figure = _figure(config)
        if figure:
            write(figure)
            console.print(
                f"policy.sampling_units = {figure:,} is suggested: the number of units, rounded "
                "down. It counts in place of the true number, and coordinators can find it out; "
                "lower it if that is too near.",
                markup=False,
                soft_wrap=True,
            )
    console.print(
        f"Site {invitation.site}. Key: {key_fingerprint(joined.registration.public_key)}\n"
        f"Send {joined.request} to the coordinator's operators; it is no secret. They admit it "
        f"with `lorica coordinator admit`.\nRead {config} through and set the limits; then, each "
        f"with --config {config}:\n"
        "lorica site ledger create   begins the privacy ledger of data never used before\n"
        "lorica site approve         lets this version's code run here\n"
        "lorica site check           says what is still missing\n"
        "lorica site start           runs trainer and node",
        markup=False,
        soft_wrap=True,
    )
    local = [finding for finding in check_site(config) if finding.name in ("site.toml", "data")]
    report(local, console)


def site_start(
    config: ConfigOption = SITE_TOML,
    only: Annotated[
        str, typer.Option(help='"trainer" or "node": start that alone, as on two machines.')
    ] = "",
) -> None:
    """Run the site: its trainer, which needs no network, and its node. Ends on SIGTERM."""
    from lorica.client.site.services import start

    if only not in ("", "trainer", "node"):
        raise typer.BadParameter('--only takes "trainer" or "node".')
    show_log()
    start(config, trainer=only != "node", node=only != "trainer")


def site_check(config: ConfigOption = SITE_TOML) -> None:
    """Check network, certificate, clock, admission, data, disk, ledger and versions."""
    from lorica.client.site.check import check_site
    from lorica.common.machine.checks import report

    report(check_site(config), Console(highlight=False, soft_wrap=True))


def show_log() -> None:
    """Lorica's own log on standard error, for as long as the process lives."""
    from lorica.common.machine.logs import set_up_logging

    set_up_logging()


def _token(given: str) -> str:
    if given == "-":
        return sys.stdin.read()
    if given.lstrip().startswith(TOKEN_PREFIX):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoricaError(
            Code.INVITATION_INVALID,
            f"{given:.200} is neither an invitation nor a file that holds one.",
        ) from error


def _figure(config: Path) -> int:
    """A rounded figure for the number of the site's units; 0 where the data cannot be read."""
    from lorica.client.admission.readiness import count_units, rounded_units
    from lorica.client.config.site import load_site
    from lorica.client.data.reading import read_records

    site = load_site(config)
    try:
        return rounded_units(count_units(read_records(site, config.resolve().parent), site))
    except LoricaError:
        return 0  # the check below says what is wrong


def _from(folder: Path, source: str) -> str:
    """A source as seen from ``folder``: a path that starts here is changed, all else is kept."""
    from lorica.common.data.kinds import is_path

    if not is_path(source) or Path(source).is_absolute():
        return source
    found = Path(source).resolve()
    return str(found.relative_to(folder)) if found.is_relative_to(folder) else str(found)
