"""``lorica export``: an adapter for elsewhere, in one of three forms."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorica.common.cli.options import AdapterArgument, BackboneOption
from lorica.common.display.console import Console


class Form(StrEnum):
    """What is written."""

    MERGED = "merged"
    PEFT = "peft"
    ONNX = "onnx"


class Numbers(StrEnum):
    """What an ONNX graph keeps weights in."""

    FLOAT32 = "float32"
    INT8 = "int8"


def export(
    adapter: AdapterArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The folder to write; default: named by --format, beside ADAPTER."
        ),
    ] = None,
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="merged: a backbone that the next run can start from and transformers load, head "
            "beside it; peft: the adapter as peft reads it; onnx: one graph for onnxruntime.",
        ),
    ] = Form.MERGED,
    numbers: Annotated[
        Numbers, typer.Option(help="Of --format onnx: what weights are kept in.")
    ] = Numbers.FLOAT32,
    backbone: BackboneOption = "",
) -> None:
    """Write an adapter for use elsewhere, after a comparison of what both compute."""
    if numbers is Numbers.INT8 and form is not Form.ONNX:
        raise typer.BadParameter("--numbers int8 goes with --format onnx.")
    console = Console()
    out = out or (adapter if adapter.name else adapter.resolve()).parent / form.value
    if form is Form.ONNX:
        _onnx(console, adapter, out, backbone, numbers)
    elif form is Form.PEFT:
        _peft(console, adapter, out, backbone)
    else:
        _merged(console, adapter, out, backbone)


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _merged(console: Console, adapter: Path, out: Path, backbone: str) -> None:
    from lorica.common.saved.exported.merged import export_merged

    with console.status("merging"):
        merged = export_merged(adapter, out, backbone)
    changed = f"{merged.changed} of its tensors changed"
    if not merged.changed:
        changed = "the backbone as it was, with the head that the run trained beside it"
    _say(console, f"Wrote {out}: {changed}; {merged.agreement.sentence}.")
    if merged.rounded:
        _say(
            console,
            f"The run's backbone was kept in fewer bits: {merged.rounded} matrices are written as "
            "the run had them, rounded, in float32.",
        )
    _say(
        console,
        f'The next run: --set backbone.source="{out}" --set backbone.sha256={merged.sha256}',
    )


def _peft(console: Console, adapter: Path, out: Path, backbone: str) -> None:
    from lorica.common.saved.exported.peft import export_peft

    with console.status("comparing"):
        copied = export_peft(adapter, out, backbone)
    _say(console, f"Wrote {out}, for peft on {copied.base}; {copied.agreement.sentence}.")


def _onnx(console: Console, adapter: Path, out: Path, backbone: str, numbers: Numbers) -> None:
    from lorica.common.saved.exported.onnx import export_onnx

    with console.status("tracing"):
        written = export_onnx(adapter, out, backbone, numbers.value)
    size = f"{written.size_bytes / 2**20:,.1f} MiB"
    _say(console, f"Wrote {out}, {size}; {written.agreement.sentence}.")
    if written.rounded is not None:
        _say(console, f"In int8, which is what was written, {written.rounded.sentence}.")
