"""Errors as people see them, and ``lorica explain``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lorica.common.display.text import printable
from lorica.common.errors import CATALOGUE, Code, LoricaError


def explain(
    code: Annotated[str | None, typer.Argument(help="An error code such as LOR-308.")] = None,
) -> None:
    """Say what an error code means and how to mend it; all codes when none is given."""
    console = Console()
    if code is None:
        table = Table("code", "what happened", box=None, header_style="bold")
        for known, entry in CATALOGUE.items():
            table.add_row(known.value, entry.title)
        console.print(table)
        return
    wanted = code.upper() if code.upper().startswith("LOR-") else f"LOR-{code}"
    try:
        entry = Code(wanted).entry
    except ValueError:
        raise typer.BadParameter(
            f"There is no error code {code}; `lorica explain` lists all."
        ) from None
    console.print(
        Panel(
            Text.assemble(
                (entry.title, "bold"),
                f"\n\n{entry.meaning}\n\n",
                ("How to mend it: ", "bold"),
                entry.mend,
            ),
            title=wanted,
            title_align="left",
        )
    )


def print_error(error: LoricaError, console: Console) -> None:
    """An error as people should see it: code, sentence, how to mend it."""
    console.print(
        Text.assemble(
            (f"error {error.code.value}  ", "bold red"),
            _shown(error.detail),  # parts of it may come from a site, from Flower or from a file
            ("\nhow to mend it  ", "bold"),
            _shown(error.mend),
        ),
        soft_wrap=True,
    )


def _shown(text: str) -> str:
    return "\n".join(printable(line) for line in text.splitlines())
