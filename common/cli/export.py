"""``lorica export``: an adapter merged into its backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorica.common.cli.options import AdapterArgument, BackboneOption
from lorica.common.display.console import Console


def export(
    adapter: AdapterArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    backbone: BackboneOption = "",
) -> None:
    """Merge an adapter into its backbone: a folder that the next run can start from."""
    from lorica.common.saved.merge import export_merged

    console = Console()
    with console.status("merging"):
        merged = export_merged(adapter, out, backbone)
    changed = f"{merged.changed} of its tensors changed"
    if not merged.changed:
        changed = "the backbone as it was, with the head that the run trained beside it"
    console.print(f"Wrote {out}: {changed}.", highlight=False)
    if merged.rounded:
        console.print(
            f"The run's backbone was kept in fewer bits: {merged.rounded} matrices are written as "
            "the run had them, rounded, in float32.",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f'The next run: --set backbone.source="{out}" --set backbone.sha256={merged.sha256}',
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
