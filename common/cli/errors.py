"""Errors as people see them, and ``lorica explain``."""

from __future__ import annotations

import os
import sys
import time
import traceback
from typing import Annotated

import typer
from rich.text import Text

from lorica.common.display.console import Console
from lorica.common.display.tables import Table
from lorica.common.display.text import plain
from lorica.common.errors import CATALOGUE, Code, LoricaError
from lorica.common.machine.home import home
from lorica.common.version import __version__

_MOST_SHOWN = 4000  # characters of a line of an error


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
        Text.assemble(
            (f"{wanted}  {entry.title}", "bold"),
            f"\n\n{entry.meaning}\n\n",
            ("How to mend it: ", "bold"),
            entry.mend,
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
    return "\n".join(plain(line, _MOST_SHOWN) for line in text.splitlines())


def unforeseen(error: Exception) -> str:
    """What is said of an error without a code; its traceback goes into a file that the user alone
    may read, because it can hold values of records."""
    kind = type(error).__name__
    trace = "".join(traceback.format_exception(error))
    folder = home() / "errors"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        path = folder / f"{name}-{os.getpid()}.log"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"lorica {__version__}: {' '.join(sys.argv[1:2])}\n{trace}")
    except OSError:
        return f"{kind}, and {folder} takes no log of it:\n{trace}"
    return f"{kind}: {str(error).splitlines()[0] if str(error) else kind}. Its log is {path}."
