"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PlanArgument = Annotated[
    Path | None, typer.Argument(help="A plan in TOML; the defaults when left out.")
]
AdapterArgument = Annotated[Path, typer.Argument(help="The adapter/ folder of a finished run.")]
BackboneOption = Annotated[
    str, typer.Option(help="Where the adapter's backbone is on this machine.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value; repeatable."),
]
