"""The ``lorica`` command: commands of this package, and those that other packages add.

Commands come as entry points of the group "lorica.commands" (name = command, value = a
function or a Typer app), so this module imports none of the other packages, and a package that
is not installed leaves no broken command behind.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorica.common.cli.added import LazyCommands
from lorica.common.cli.errors import explain, print_error
from lorica.common.cli.plan import plan_app
from lorica.common.errors import Code, LoricaError
from lorica.common.version import __version__

app = typer.Typer(
    name="lorica",
    cls=LazyCommands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Adapt one pretrained model across institutions that may not share data: federated "
    "LoRA under differential privacy that each site enforces itself.\n\n"
    "Start with [bold]lorica demo[/bold]: four hospitals, synthetic notes, a minute or two.",
)
app.command(rich_help_panel="Help")(explain)
app.add_typer(plan_app, name="plan", rich_help_panel="Plans")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        Console().print(f"lorica {__version__}", highlight=False)
        raise typer.Exit


@app.command(rich_help_panel="Models")
def predict(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to read.")] = None,
    adapter: Annotated[
        Path, typer.Option("--adapter", "-a", help="The adapter/ folder of a finished run.")
    ] = Path("adapter"),
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Texts in a .csv, .tsv or .jsonl file.")
    ] = None,
    text: Annotated[
        str, typer.Option(help="Column of --file with the text, or the images' file names.")
    ] = "text",
    value: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="What a table's column holds beside the texts given here; repeatable. Columns "
            "that are left out count as missing. With --file they come from its columns.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write .csv, .tsv or .jsonl here.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="Where the adapter's backbone is on this machine.")
    ] = "",
) -> None:
    """Use a trained adapter on texts (or images' names): arguments, a file, or lines of stdin."""
    from lorica.common.machine.files import write_atomically
    from lorica.common.saved.predict import Predictor, as_csv, as_jsonl, columns_of, read_texts

    values = dict(map(_value, value or []))
    if file is not None and values:
        raise typer.BadParameter("--value goes with texts; with --file, values are its columns.")
    if file is not None:
        rows, given = read_texts(file, text)
        predictor = Predictor(adapter, backbone)
        beside = columns_of(rows, predictor.columns, str(file))
        if predictor.reads_images:
            given = [str(file.parent / name) for name in given]
    else:
        given = texts or _lines_of_stdin()
        rows = [{text: item} | values for item in given]
        predictor = Predictor(adapter, backbone)
        beside = {name: [cell] * len(given) for name, cell in values.items()}
    predictions = predictor(given, beside)
    if output is None and texts and sys.stdout.isatty():
        table = Table("text", "answer", "probability", box=None, header_style="bold")
        for item, prediction in zip(given, predictions, strict=True):
            sure = prediction.certainty
            table.add_row(Text(item), Text(prediction.shown), "" if sure is None else f"{sure:.1%}")
        Console().print(table)
        return
    kind = (output or file or Path("x.jsonl")).suffix.lower()
    if kind == ".jsonl":
        lines = as_jsonl(rows, predictions)
    else:
        lines = as_csv(rows, predictions, "\t" if kind == ".tsv" else ",")
    if output is None:
        sys.stdout.writelines(lines)
    else:
        write_atomically(output, "".join(lines))


@app.command(rich_help_panel="Models")
def export(
    adapter: Annotated[Path, typer.Argument(help="The adapter/ folder of a finished run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    backbone: Annotated[
        str, typer.Option(help="Where the adapter's backbone is on this machine.")
    ] = "",
) -> None:
    """Merge an adapter into its backbone: a folder that the next run can start from."""
    from lorica.common.saved.merge import export_merged

    console = Console()
    with console.status("merging"):
        merged = export_merged(adapter, out, backbone)
    console.print(f"Wrote {out}: {merged.changed} of its tensors changed.", highlight=False)
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


def _value(setting: str) -> tuple[str, str]:
    name, equals, cell = setting.partition("=")
    if not equals or not name.strip():
        raise typer.BadParameter(f"--value takes COLUMN=VALUE, got {setting!r}.")
    return name.strip(), cell.strip()


def _lines_of_stdin() -> list[str]:
    try:
        return [line.rstrip("\n") for line in sys.stdin if line.strip()]
    except UnicodeDecodeError as error:
        raise LoricaError(
            Code.DATA_ENCODING,
            f"Standard input is not {error.encoding.upper()}: byte "
            f"0x{error.object[error.start]:02x} cannot be decoded.",
        ) from None


def build() -> typer.Typer:
    """The whole command: this package's and those that installed packages add, by name; these are
    loaded when they are called."""
    return app


def run() -> None:
    """Run the command; coded errors end with their own exit status."""
    # Read when torch is loaded, later. Waiting threads that spin cost up to fourfold where other
    # processes want the cores, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        build()()
    except LoricaError as error:
        print_error(error, Console(stderr=True))
        sys.exit(error.exit_status)
    except BrokenPipeError:
        sys.exit(141)
