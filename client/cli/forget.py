"""``lorica site forget``: records of a person who is no longer to be used."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from lorica.client.cli.options import SITE_TOML, ConfigOption
from lorica.common.display.console import Console
from lorica.common.errors import Code, LoricaError


def site_forget(
    units: Annotated[
        list[str], typer.Argument(help="Units as the column data.unit names them; several.")
    ],
    config: ConfigOption = SITE_TOML,
    sure: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Leave a unit's records out from now on, remove cached states, and say what stays.

    The source itself is not changed: delete the records there, too. What runs have released stays
    released, and the ledger keeps what it cost.
    """
    from contextlib import ExitStack

    from lorica.client.admission.readiness import count_units, require_figure, require_records
    from lorica.client.config.site import load_site
    from lorica.client.data.changes import require_unchanged
    from lorica.client.data.fetched import fetch
    from lorica.client.data.forgotten import forgotten
    from lorica.client.data.reading import read_records
    from lorica.client.service.socket_file import SocketFile
    from lorica.client.training.opening import data_file, open_ledger
    from lorica.common.cache.files import remove_all
    from lorica.common.data.names.normal import id_form
    from lorica.common.display.text import printable

    console = Console()
    site, root = load_site(config), config.absolute().parent
    if not site.data.unit:
        raise LoricaError(
            Code.DATA_UNIT,
            "site.toml names no column data.unit: no record says whose it is.",
            mend="Delete the records at the source, then run `lorica site data accept`.",
        )
    with ExitStack() as held_open:
        # A trainer that runs has the records in memory; none starts while the socket is ours.
        held_open.callback(SocketFile(root / site.trainer.socket).close)
        ledger = open_ledger(site, root)
        held_open.callback(ledger.close)
        listed, fetched = forgotten(site, root), fetch(config, site)
        before = read_records(site, root, fetched)
        accept = site.data.changed == "accept"
        require_unchanged(before, data_file(site, root), accept=accept)  # for no other reason
        names = {id_form(unit) for unit in units}
        held = [row for row, unit in enumerate(before.units) if unit in names]
        there = {before.units[row] for row in held}
        for name in sorted(names - there):
            state = "left out already" if listed.has(name) else "of no record here"
            console.print(Text(f"{printable(name)} is {state}."), style="yellow", soft_wrap=True)
        if len(there) == len(set(before.units)):
            raise LoricaError(
                Code.DATA_TOO_FEW_RECORDS, "No record would be left.", mend="End the site instead."
            )
        console.print(
            Text(f"{len(held):,} records of {len(there):,} units are left out from now on."),
            soft_wrap=True,
        )
        left = [row for row, unit in enumerate(before.units) if unit not in there]
        after = before.take(left)
        require_figure(site, count_units(after, site))
        require_records(site, after)
        if not sure:
            typer.confirm("Go on?", abort=True)
        listed.add(units)
        cached = remove_all(root / site.data.cache) if site.data.cache else 0
        require_unchanged(after, data_file(site, root), accept=True)
        runs = ledger.history().runs()
    said = [
        f"{len(after):,} records remain.",
        f"{cached} files of cached states were removed: they held states of all records."
        if site.data.cache
        else "There are no cached states on disk.",
    ]
    console.print(Text(" ".join(said)), soft_wrap=True)
    console.print(Text("What this does not undo:"), style="bold")
    for line in _what_stays(runs):
        console.print(Text(f"- {line}"), soft_wrap=True)


def _what_stays(runs: list[str]) -> list[str]:
    """What a removal cannot take back, for the person who must answer for it."""
    took = ", ".join(runs) if runs else "none so far"
    return [
        f"Updates that left in runs ({took}), and the adapters made of them. Their (ε, δ) bounds "
        "what they tell of any one unit, this one too; `lorica site ledger show` has the figures.",
        "The ledger: charges are of the whole data set, and none is given back.",
        "The records at the source, its backups, and what was read from it elsewhere: delete them "
        "there.",
        "What lies in this site's folder: logs, which may name values of records, stored replies, "
        "and tensors that a method left to the site (personal/).",
        "Pages of `lorica site evaluate`, whose figures counted this unit, too. `lorica site data "
        "check` and `lorica backbone rank` read the source as it is.",
        "Models that this site trained without privacy (`lorica site benefit --output`): delete "
        "the folders, and make them anew.",
    ]
