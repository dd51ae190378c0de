"""Arguments that several commands take."""

from __future__ import annotations

from enum import StrEnum
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


class Numbers(StrEnum):
    """What an encoder computes in."""

    FLOAT32 = "float32"
    BF16 = "bf16"
    AUTO = "auto"


PrecisionOption = Annotated[
    Numbers,
    typer.Option(
        help="What the model computes in: bf16 is about twice as fast where the processor has "
        "units for it, and moves probabilities by about 0.01; auto takes it where there are."
    ),
]
