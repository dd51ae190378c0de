"""``lorica distill``: a smaller model that answers as an adapter does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lorica.common.cli.options import AdapterArgument, BackboneOption
from lorica.common.display.console import Console


def distill(
    adapter: AdapterArgument,
    texts: Annotated[
        Path, typer.Option("--texts", help="Texts without labels: whatever `predict` takes.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="New folder for backbone/ and adapter/.")
    ],
    public_texts: Annotated[
        bool,
        typer.Option(
            "--public-texts/--private-texts",
            help="Whether anybody may read the texts. If not, the student may tell of them, and "
            "is marked as one without privacy.",
        ),
    ],
    layers: Annotated[int, typer.Option(min=1, help="Layers of the student.")] = 3,
    epochs: Annotated[int, typer.Option(min=0, help="Over the texts.")] = 5,
    text: Annotated[str, typer.Option(help="Column of the text; the plan's if empty.")] = "",
    seed: Annotated[int, typer.Option(help="Of the order of texts.")] = 0,
    backbone: BackboneOption = "",
) -> None:
    """Train a student of fewer layers to an adapter's answers, on text without labels.

    On public texts it has the adapter's privacy, and costs no ε.
    """
    from lorica.common.saved.distill import distill as distilled
    from lorica.common.saved.folder import load_adapter
    from lorica.common.saved.given import read_given

    console = Console()
    given = read_given(texts, load_adapter(adapter).plan, text=text, label="")
    with console.status("training the student"):
        found = distilled(
            adapter,
            [given.texts[row] for row in given.read],
            out,
            layers=layers,
            epochs=epochs,
            seed=seed,
            public=public_texts,
            backbone_source=backbone,
        )
    console.print(
        Text(
            f"Wrote {out / 'adapter'} on {out / 'backbone'}: {found.layers} layers, "
            f"{found.parameters:,} of {found.teacher_parameters:,} numbers, "
            f"{found.times_as_fast:.1f} times as fast here."
        ),
        soft_wrap=True,
    )
    console.print(
        Text(
            f"The same label as the adapter for {found.agreement:.1%} of {found.aside} texts set "
            f"aside ({found.before:.1%} before training); probabilities {found.distance:.3f} apart "
            "(total variation)."
        ),
        soft_wrap=True,
    )
    if not public_texts:
        console.print(
            Text("It has no privacy: it may tell of the texts."), style="yellow", soft_wrap=True
        )
