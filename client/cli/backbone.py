"""``lorica backbone check``: what a pretrained model is, and what of it can be adapted."""

from __future__ import annotations

import resource
import sys
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from lorica.common.display.console import Console

app = typer.Typer(
    name="backbone",
    no_args_is_help=True,
    help="Look at pretrained models before a run is built on them.",
    rich_help_panel="Models",
)


@app.callback()
def _group() -> None:
    """Look at pretrained models before a run is built on them."""


@app.command("check")
def backbone_check(
    source: Annotated[
        str, typer.Argument(help='A folder, a hub id, or "embedded".', show_default=False)
    ] = "embedded",
    images: Annotated[
        bool, typer.Option("--images", help="Of a model of texts and images, the part for images.")
    ] = False,
    revision: Annotated[str, typer.Option(help="Of a hub id: commit, tag or branch.")] = "",
    length: Annotated[
        int, typer.Option(min=1, help="Tokens of the longest text to try, if the model takes it.")
    ] = 512,
) -> None:
    """Load a model, try it on made-up records, and say what of it can be adapted."""
    from lorica.client.mechanism.adaptable import adaptable, batch_norms
    from lorica.common.backbone.loading import load_backbone
    from lorica.common.backbone.prefix import windows_of
    from lorica.common.backbone.quantised import weight_bytes
    from lorica.common.backbone.trial import try_length
    from lorica.common.display.text import printable
    from lorica.common.display.wording import human_bytes
    from lorica.common.plan.subject import BackbonePlan

    console = Console()
    with console.status("loading"):
        plan = BackbonePlan(source=source, revision=revision)
        backbone = load_backbone(plan, images=images)
    model, texts = backbone.model, backbone.processor is None
    longest = min(backbone.max_length, length)
    with console.status("trying"):
        if texts:
            try_length(model, longest)
        rows = adaptable(backbone)
    found = Table(show_header=False, box=None, pad_edge=False)
    found.add_column(style="bold", no_wrap=True)
    found.add_column(overflow="fold")

    def say(name: str, value: object) -> None:
        found.add_row(name, Text(printable(str(value))))

    say("model", f"{type(model).__name__} ({model.config.model_type})")
    say("in", backbone.folder)
    if backbone.part:
        say("part", f"{backbone.part}: what reads the {'texts' if texts else 'images'}")
    say("weights", f"SHA-256 {backbone.sha256}")
    say("parameters", f"{sum(p.numel() for p in model.parameters()):,}")
    say("memory", f"{human_bytes(weight_bytes(model))} of weights in float32")
    say("layers", backbone.layers or "no list of equal layers: set adapter.layers to []")
    if texts:
        pooling = backbone.pooling
        say("feature", f"{backbone.feature_size} numbers: {' and '.join(pooling.modes)}")
        for step in pooling.steps:
            say("", f"then {type(step).__name__}")
        if pooling.prompt:
            say("prompt", repr(pooling.prompt))
        limit = backbone.max_length
        unlimited = limit >= sys.maxsize
        say("longest text", "no limit" if unlimited else f"{limit:,} tokens")
        if backbone.promised_length:
            say("", f"made for up to {backbone.promised_length:,}, as its own files say")
        say("tried with", f"{longest:,} tokens: its states are finite")
        windows = windows_of(model.config)
        if windows:
            say("windows", ", ".join(f"{window:,}" for window in windows) + " tokens")
    else:
        say("feature", f"{backbone.feature_size} numbers: {backbone.readout}")
    norms = batch_norms(backbone)
    if norms:
        say("batch norms", f'{norms}: set adapter.batch_norm to "fixed" or "group"')
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    say("peak memory", human_bytes(peak * (1 if sys.platform == "darwin" else 1024)))
    console.print(found)
    table = Table("can be adapted", "modules", "gradients per record", header_style="bold")
    for row in rows:
        said = Text(printable(row.problem), "red") if row.problem else Text("right", "green")
        table.add_row(Text(printable(row.name)), str(row.count), said)
    table.add_row("head alone", "–", Text("right", "green"))
    console.print(table)
