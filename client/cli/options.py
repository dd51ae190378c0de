"""Options that the ``lorica site`` commands share: which site.toml, which ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorica.common.errors import Code, LoricaError

ConfigOption = Annotated[
    Path, typer.Option("--config", "--site", "-c", "-s", help="The site's site.toml.")
]
LedgerOption = Annotated[
    Path | None,
    typer.Option("--ledger", "-l", help="The ledger's file; left out, site.toml names it."),
]

SITE_TOML = Path("site.toml")
"""Where site.toml is when no option says so."""


def ledger_file(ledger: Path | None, config: Path) -> Path:
    """The ledger that a command reads: the one given, else the one that site.toml names.

    Raises:
        LoricaError: LOR-409 none is given, and site.toml cannot be read.
    """
    from lorica.client.config.site import load_site

    if ledger is not None:
        return ledger
    if not config.exists():
        raise LoricaError(
            Code.SITE_CONFIG,
            f"No ledger is given, and there is no {config} that names it.",
            mend="Give site.toml with --config, or the ledger's file with --ledger.",
        )
    return config.absolute().parent / load_site(config).ledger.path
