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

from lorica.common.cli.added import LazyCommands
from lorica.common.cli.errors import explain, print_error, unforeseen
from lorica.common.cli.evaluate import evaluate
from lorica.common.cli.plan import plan_app
from lorica.common.cli.predict import predict
from lorica.common.cli.serve import serve
from lorica.common.display.console import Console
from lorica.common.display.terminal import prepare
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
for use in (predict, evaluate, serve):
    app.command(rich_help_panel="Models")(use)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        Console().print(f"lorica {__version__}", highlight=False)
        raise typer.Exit


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
    changed = f"{merged.changed} of its tensors changed"
    if not merged.changed:
        changed = "the backbone as it was, with the head that the run trained beside it"
    console.print(f"Wrote {out}: {changed}.", highlight=False)
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


def build() -> typer.Typer:
    """The whole command: this package's and those that installed packages add, by name; these are
    loaded when they are called."""
    return app


def run() -> None:
    """Run the command; coded errors end with their own exit status."""
    # Read when torch is loaded, later. Waiting threads that spin cost up to fourfold where other
    # processes want the cores, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prepare()
    try:
        build()()
    except LoricaError as error:
        print_error(error, Console(stderr=True))
        sys.exit(error.exit_status)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:  # noqa: BLE001 - nobody's code is to end in a traceback
        unexpected = LoricaError(Code.UNEXPECTED, unforeseen(error))
        print_error(unexpected, Console(stderr=True))
        sys.exit(unexpected.exit_status)
