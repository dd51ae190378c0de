"""``lorica explain-prediction``: why an adapter answers as it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lorica.common.cli.options import AdapterArgument, BackboneOption
from lorica.common.display.console import Console
from lorica.common.errors import Code, LoricaError


def explain_prediction(
    adapter: AdapterArgument,
    texts: Annotated[list[str], typer.Argument(help="Texts, or files of images.")],
    label: Annotated[
        str, typer.Option(help="Explain this label; the answer's own if left out.")
    ] = "",
    value: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE", help="What a table's column holds beside them; repeatable."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with all answers here.")] = None,
    backbone: BackboneOption = "",
) -> None:
    """Show which words, pixels or columns spoke for an answer, and which against it."""
    from lorica.common.saved.predict import record_of
    from lorica.common.saved.reasons.attribution import Explainer
    from lorica.common.saved.reasons.page import print_reasons, write_page

    console = Console()
    cells = {}
    for setting in value or []:
        name, equals, cell = setting.partition("=")
        if not equals or not name.strip():
            raise typer.BadParameter(f"--value takes COLUMN=VALUE, got {setting!r}.")
        cells[name.strip()] = cell.strip()
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise LoricaError(Code.DATA_EMPTY_TEXT, f"Text {number} is empty.")
    explainer = Explainer(adapter, backbone)
    found = []
    for text in texts:
        with console.status("following gradients"):
            reasons = explainer(record_of(explainer.plan, text, cells), label)
        print_reasons(reasons, console)
        found.append(reasons)
    if html is not None:
        write_page(html, found, adapter=str(adapter))
        console.print(Text(f"Wrote {html}."))
