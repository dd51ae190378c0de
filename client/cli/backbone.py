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
    from lorica.client.choice.adaptable import adaptable, batch_norms
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


@app.command("rank")
def backbone_rank(
    sources: Annotated[
        list[str], typer.Argument(help='Two or more: folders, hub ids, or "embedded".')
    ],
    data: Annotated[
        str, typer.Option("--data", "-d", help="Labelled records: whatever training takes.")
    ],
    text: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    label: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    unit: Annotated[
        str, typer.Option(help="Column that says whose a record is; empty: each its own.")
    ] = "",
    images: Annotated[bool, typer.Option("--images", help="Records are images.")] = False,
    labels: Annotated[
        str, typer.Option(help="Names of the labels, with commas between; needed for an ε.")
    ] = "",
    epsilon: Annotated[float, typer.Option(help="Of all probes together; inf: no noise.")] = 1.0,
    delta: Annotated[float, typer.Option(help="Of all probes together.")] = 1e-5,
    length: Annotated[int, typer.Option(min=2, help="Tokens that are read of a text.")] = 128,
) -> None:
    """Which backbone? A DP linear probe and LogME on your records, time and memory beside.

    With --labels the probes' accuracies have the ε that is asked for; names read from the data
    are a question that costs nothing, and then no ε holds. LogME is exact, FOR THIS MACHINE ALONE.
    Nothing is sent, and no ledger is charged: if you tell the accuracies, you have spent that ε.
    """
    import secrets

    from lorica.client.choice.ranking import rank_backbones
    from lorica.client.mechanism.noise import SecureNoise
    from lorica.common.data.records import read_records
    from lorica.common.display.text import printable
    from lorica.common.display.wording import human_bytes
    from lorica.common.plan import RunPlan
    from lorica.common.tasks.run_data import with_labels

    if len(sources) < 2:
        raise typer.BadParameter("Name two backbones or more.")
    named = [name.strip() for name in labels.split(",") if name.strip()]
    if len(named) == 1:
        raise typer.BadParameter("Name two labels or more.")
    console = Console()
    plan = RunPlan().replace(
        task={
            "kind": "image-classification" if images else "text-classification",
            "labels": named,
        },
        adapter={"kind": "head", **({"batch_norm": "fixed"} if images else {})},
        data={"train": data, "text": text, "label": label, "unit": unit},
        privacy={"unit": unit or "record"},
        training={"max_length": length},
    )
    with console.status("reading records, and what backbones make of them"):
        records = read_records(
            data, plan=plan.columns, unit=unit, images=images, labels_are_names=True
        )
        ranking = rank_backbones(
            plan if plan.task.labels else with_labels(plan, records),
            sources,
            records,
            epsilon=epsilon,
            delta=delta,
            noise=SecureNoise(),
            secret=secrets.token_bytes(32),
        )
    claim = f"probe, ε = {epsilon:g}" if labels else "probe, no ε"
    columns = ("", "backbone", claim, "LogME", "s / 1,000", "weights", "width")
    table = Table(*columns, header_style="bold")
    for place, row in enumerate(ranking.rows, 1):
        table.add_row(
            str(place),
            Text(printable(row.source)),
            f"{row.accuracy:.1%}",
            f"{row.logme:.3f}",
            f"{row.seconds:.1f}",
            human_bytes(row.weight_bytes),
            f"{row.width:,}",
        )
    console.print(table)
    said = (
        f"Accuracy of a linear head on frozen features, ± {ranking.probed.band:.1%} for the noise"
    )
    console.print(
        Text(f"{said}. LogME is exact, and as private as the records: keep it here."),
        soft_wrap=True,
    )
    if not labels:
        console.print(
            Text(
                "The labels were read from the data, so the accuracies have no ε: keep them here, "
                "too, or name the labels with --labels."
            ),
            style="yellow",
            soft_wrap=True,
        )
