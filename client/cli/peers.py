"""``lorica site peers show`` and ``confirm``: whom this site hides among in sealed sums."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lorica.client.cli.options import SITE_TOML, ConfigOption
from lorica.common.display.console import Console
from lorica.common.display.text import printable

if TYPE_CHECKING:
    from lorica.client.secure_sum.peers import Peers

peers_app = typer.Typer(help="The other sites of sealed sums, and which of them are known here.")


@peers_app.command("show")
def peers_show(config: ConfigOption = SITE_TOML) -> None:
    """List the sites that runs named, with the fingerprints of their keys; this one's first."""
    from lorica.client.config.site import load_site

    site, peers = load_site(config), _opened(config)
    table = Table(box=None)
    for column in ("site", "fingerprint of its key", "known here"):
        table.add_column(column)
    own = peers.own()
    table.add_row(site.site.name, own.fingerprint, "this site")
    others = [peer for peer in peers.all() if peer.name != site.site.name]
    for peer in others:
        known = "yes" if peer.confirmed else "no"
        table.add_row(printable(peer.name), peer.fingerprint, known)
    console = Console()
    console.print(table)
    if not others:
        console.print("No run has named another site yet.")
    elif not all(peer.confirmed for peer in others):
        console.print(
            "Compare a fingerprint with that site's people, by telephone or in person, then: "
            "lorica site peers confirm NAME",
            soft_wrap=True,
        )


@peers_app.command("confirm")
def peers_confirm(
    names: Annotated[list[str], typer.Argument(help="Sites whose fingerprints were compared.")],
    config: ConfigOption = SITE_TOML,
) -> None:
    """Take sites' keys for their own from now on."""
    peers = _opened(config)
    for name in names:
        peer = peers.confirm(name)
        Console().print(f"{printable(peer.name)} is known by {peer.fingerprint}.", highlight=False)


def _opened(config: Path) -> Peers:
    from lorica.client.config.site import load_site
    from lorica.client.training.opening import site_peers

    return site_peers(load_site(config), config.absolute().parent)
