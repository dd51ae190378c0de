"""``lorica coordinator``: what a coordinator's operators do at their machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lorica.common.display.console import Console
from lorica.server.coordinator.cli.coordinator import add_commands

app = typer.Typer(
    name="coordinator",
    no_args_is_help=True,
    help="Look after a coordinator.",
    rich_help_panel="Coordinators",
)


@app.callback()
def _coordinator() -> None:
    """Look after a coordinator."""


@app.command("key")
def coordinator_key(
    file: Annotated[
        Path, typer.Argument(help="Where to write the private key; never overwritten.")
    ],
) -> None:
    """Make the key that signs a coordinator's requests, and print its public half.

    The public key goes to standard output, alone on its line; sites list it in
    policy.coordinators of site.toml.
    """
    from lorica.common.wire.signing import KEY_VARIABLE, CoordinatorKey

    key = CoordinatorKey.create(file)
    sys.stdout.write(f"{key.public}\n")
    Console(stderr=True).print(
        f"The private key is in {file}: keep it, and show it to nobody. Set {KEY_VARIABLE} to its "
        "path at the coordinator, and give the line above to the sites, by a way they trust, for "
        "policy.coordinators.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


add_commands(app)
