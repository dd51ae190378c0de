"""The ``lorica`` command: commands of this package, and those that other packages add.

Commands come as entry points of the group "lorica.commands" (name = command, value = a
function or a Typer app), so this module imports none of the other packages, and a package that
is not installed leaves no broken command behind.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from lorica.common.cli.added import LazyCommands
from lorica.common.cli.distill import distill
from lorica.common.cli.errors import explain, print_error, unforeseen
from lorica.common.cli.evaluate import evaluate
from lorica.common.cli.export import export
from lorica.common.cli.few_shot import few_shot
from lorica.common.cli.plan import plan_app
from lorica.common.cli.predict import predict
from lorica.common.cli.push import push
from lorica.common.cli.reasons import explain_prediction
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
    "Start with [bold]lorica demo[/bold]: four hospitals, synthetic notes, a minute.",
)
app.command(rich_help_panel="Help")(explain)
app.add_typer(plan_app, name="plan", rich_help_panel="Plans")
for use in (predict, evaluate, explain_prediction, serve, few_shot, export, distill, push):
    app.command(rich_help_panel="Models")(use)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        Console().print(f"lorica {__version__}", highlight=False)
        raise typer.Exit


def run() -> None:
    """Run the command; coded errors end with their own exit status."""
    # Read when torch is loaded, later. Waiting threads that spin cost up to fourfold where other
    # processes want the cores, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prepare()
    try:
        app()
    except LoricaError as error:
        print_error(error, Console(stderr=True))
        sys.exit(error.exit_status)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:  # noqa: BLE001 - nobody's code is to end in a traceback
        unexpected = LoricaError(Code.UNEXPECTED, unforeseen(error))
        print_error(unexpected, Console(stderr=True))
        sys.exit(unexpected.exit_status)
