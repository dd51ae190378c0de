"""`lorica site ledger …`."""

from __future__ import annotations

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from lorica.client.cli.options import SITE_TOML, ConfigOption, LedgerOption, ledger_file
from lorica.common.display.console import Console
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:  # the ledger's modules need numpy; `lorica --help` should not wait for it
    from lorica.client.ledger.blocks import BlockFile
    from lorica.client.ledger.reports.summary import Summary
    from lorica.client.ledger.verify import Inspection


ledger_app = typer.Typer(
    no_args_is_help=True, help="What the site's data have spent of their privacy budget."
)

OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write here instead of to the terminal.")
]

_HEAD = re.compile(r"(\d{1,12}):([0-9a-fA-F]{64})")


class Format(StrEnum):
    """Forms of an export."""

    json = "json"
    csv = "csv"


@ledger_app.command("show")
def ledger_show(ledger: LedgerOption = None, config: ConfigOption = SITE_TOML) -> None:
    """Show what was spent: in all, by run, by month, and over time; and what runs took here."""
    from lorica.client.ledger.blocks import BlockFile, cache_path
    from lorica.client.ledger.reports.effort import effort_file, taken_by_run
    from lorica.client.ledger.reports.terminal import show
    from lorica.client.ledger.verify import inspect

    console, path = Console(), ledger_file(ledger, config)
    with console.status("reading the ledger"):
        found = inspect(path)
        found.require_sound()
        blocks = BlockFile(cache_path(path), read_only=True)
        summary = _summary(found, blocks)
        blocks.close()
    show(summary, console, taken_by_run(effort_file(path)))


@ledger_app.command("verify")
def ledger_verify(
    ledger: LedgerOption = None,
    config: ConfigOption = SITE_TOML,
    head: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NUMBER:HASH",
            help="Also check that the ledger holds this entry, which an earlier report, export "
            "or verification named; repeatable.",
        ),
    ] = None,
    recompose: Annotated[
        bool, typer.Option(help="Also compose ε anew from the entries alone.")
    ] = True,
) -> None:
    """Find any edit, deletion, reordering or rollback of the ledger; change nothing."""
    from lorica.client.ledger.verify import inspect

    heads = [_parse_head(text) for text in head or []]
    console, path = Console(), ledger_file(ledger, config)
    with console.status("verifying the ledger"):
        found = inspect(path, heads=heads, recompose=recompose)
    for problem in found.problems:
        console.print(Text.assemble(("✗ ", "bold red"), problem), soft_wrap=True)
    if not found.sound:
        raise LoricaError(
            Code.LEDGER_DAMAGED,
            f"The ledger {path} is not sound; its first {found.history.count} of {found.count} "
            "entries are.",
        )
    console.print(
        Text.assemble(
            ("✓ ", "bold green"), f"{found.count} entries, an unbroken chain that holds its anchor"
        )
    )
    if found.epsilon is not None:
        console.print(
            f"  total ε composed anew: {found.epsilon:.4g} at δ = {found.history.delta:g}",
            highlight=False,
        )
    console.print(
        f"  newest entry {found.history.count}:{found.history.head}",
        highlight=False,
        soft_wrap=True,
    )


@ledger_app.command("export")
def ledger_export(
    ledger: LedgerOption = None,
    config: ConfigOption = SITE_TOML,
    form: Annotated[Format, typer.Option("--format", "-f", help="json or csv.")] = Format.json,
    output: OutputOption = None,
) -> None:
    """Write the ledger as JSON (the whole chain) or CSV (one row per mechanism)."""
    from lorica.client.ledger.reports.export import as_csv, as_json
    from lorica.client.ledger.verify import inspect
    from lorica.common.machine.files import write_atomically

    found = inspect(ledger_file(ledger, config))
    found.require_sound()
    history = found.history
    text = as_json(history, found.entries) if form is Format.json else as_csv(history)
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomically(output, text)


@ledger_app.command("report")
def ledger_report(
    ledger: LedgerOption = None,
    config: ConfigOption = SITE_TOML,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path(
        "ledger.html"
    ),
) -> None:
    """Write one page for a privacy officer, with ε composed anew; printable, needs no network."""
    from lorica.client.ledger.verify import inspect

    try:
        from lorica.client.ledger.reports.effort import effort_file, taken_by_run
        from lorica.client.ledger.reports.page import write_report
    except ModuleNotFoundError as error:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            f"The report needs the package {error.name}.",
            mend="pip install 'lorica[train]'",
        ) from error
    console = Console()
    with console.status("verifying the ledger and composing ε"):
        path = ledger_file(ledger, config)
        found = inspect(path, recompose=True)
        taken = taken_by_run(effort_file(path))
        write_report(output, _summary(found, None, quick=False), found, taken=taken)
    console.print(f"Wrote {output}.", highlight=False, soft_wrap=True)
    found.require_sound()


def _summary(found: Inspection, blocks: BlockFile | None, *, quick: bool = True) -> Summary:
    from lorica.client.ledger.composer import Composer
    from lorica.client.ledger.reports.summary import MOST_RDP, summarise

    composer = found.composer or Composer(found.history.delta, blocks)
    return summarise(found.history, composer, most_rdp=MOST_RDP if quick else sys.maxsize)


def _parse_head(text: str) -> tuple[int, str]:
    match = _HEAD.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not NUMBER:HASH with 64 hex digits of hash.")
    return int(match[1]), match[2]
