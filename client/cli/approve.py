"""``lorica site approve``, ``withdraw`` and ``fab-check``: which code may run at a site."""

from __future__ import annotations

import difflib
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from lorica.client.cli.options import SITE_TOML, ConfigOption
from lorica.common.display.console import Console
from lorica.common.display.tables import Table
from lorica.common.display.text import plain
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors

if TYPE_CHECKING:
    from lorica.client.node.fab import Bundle

_MOST_LINES, _MOST_LINE = 200, 2000  # of a file's differences; characters of a line


def site_approve(
    fab: Annotated[
        Path | None,
        typer.Argument(help="The bundle (.fab); this installation's own when left out."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigOption = SITE_TOML,
) -> None:
    """Look into a bundle of apps and, when confirmed, let it run at this site.

    Nothing of it is run or unpacked by looking. A coordinator's bundle should be the same as this
    installation's own, or differ by what you have read and understood.
    """
    from lorica.client.config.site import load_site
    from lorica.client.node.approved_code import approve, prepare
    from lorica.client.node.fab import read_bundle
    from lorica.common.wire.bundle import build_bundle

    loaded, root = load_site(config), config.absolute().parent
    if fab is None:
        content = build_bundle()
    else:
        with storage_errors(fab):
            content = fab.read_bytes()
    bundle, own = read_bundle(content), read_bundle(build_bundle())
    console = Console()
    _show(bundle, own, console)
    if not yes and not (sys.stdin.isatty() and typer.confirm("Let this code run at this site?")):
        raise LoricaError(
            Code.CODE_NOT_APPROVED,
            "Nobody confirmed it, so nothing was approved.",
            mend="Answer y, or give --yes when you have looked at it.",
        )
    approve(content, root)
    prepare(loaded, root)
    console.print(f"Approved: {bundle.sha256}", style="bold green", soft_wrap=True)


def site_withdraw(
    sha256: Annotated[str, typer.Argument(help="The bundle's SHA-256, or its first digits.")],
    config: ConfigOption = SITE_TOML,
) -> None:
    """Let an approved bundle run no longer."""
    from lorica.client.config.site import load_site
    from lorica.client.node.approved_code import approved, prepare, withdraw

    loaded, root = load_site(config), config.absolute().parent
    found = [b.sha256 for b in approved(root) if sha256 and b.sha256.startswith(sha256.lower())]
    if len(found) != 1:
        raise LoricaError(
            Code.CODE_NOT_APPROVED,
            f"{len(found)} approved bundles have a SHA-256 that begins with {sha256!r}.",
            mend="`lorica site fab-check` lists them.",
        )
    withdraw(found[0], root)
    if approved(root):
        prepare(loaded, root)
    Console().print(f"No longer approved: {found[0]}", soft_wrap=True)


def site_fab_check(config: ConfigOption = SITE_TOML) -> None:
    """List the approved bundles, and compare what is installed with them, by content."""
    from lorica.client.config.site import load_site
    from lorica.client.node.approved_code import approved, prepare

    loaded, root = load_site(config), config.absolute().parent
    home = prepare(loaded, root)
    console = Console()
    for bundle in approved(root):
        line = Text.assemble(("✓ ", "bold green"), f"{bundle.sha256}  {plain(_named(bundle))}")
        console.print(line, soft_wrap=True)
    console.print(f"  installed in {home}", highlight=False, soft_wrap=True)


def _show(bundle: Bundle, own: Bundle, console: Console) -> None:
    table = Table("file", "bytes", "SHA-256", "", box=None, header_style="bold")
    for path, data in sorted(bundle.files.items()):
        same = own.files.get(path)
        verdict = "as installed here" if same == data else "DIFFERS" if same is not None else "NEW"
        digest = hashlib.sha256(data).hexdigest()[:16]
        table.add_row(plain(path), f"{len(data):,}", digest, verdict)
    console.print(Text.assemble((plain(_named(bundle)), "bold"), f"  SHA-256 {bundle.sha256}"))
    console.print(f"  app at sites         {plain(bundle.clientapp)}", highlight=False)
    console.print(f"  app at coordinator   {plain(bundle.serverapp)}", highlight=False)
    console.print(table)
    if bundle.sha256 == own.sha256:
        console.print("It is this installation's own bundle, byte for byte.", style="green")
        return
    for path in sorted({*bundle.files, *own.files}):
        _show_difference(path, own.files.get(path, b""), bundle.files.get(path, b""), console)


def _show_difference(path: str, own: bytes, other: bytes, console: Console) -> None:
    if own == other:
        return
    before, after = (data.decode("utf-8", "replace").splitlines() for data in (own, other))
    lines = list(difflib.unified_diff(before, after, "installed here", path, lineterm=""))
    for line in lines[:_MOST_LINES]:
        style = {"+": "green", "-": "red"}.get(line[:1], "dim")
        console.print(Text(plain(line, _MOST_LINE), style=style), soft_wrap=True)
    if len(lines) > _MOST_LINES:
        console.print(f"… and {len(lines) - _MOST_LINES} lines more: read the file itself.")


def _named(bundle: Bundle) -> str:
    return f"{bundle.publisher}/{bundle.name} {bundle.version}"
