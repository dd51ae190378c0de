"""``lorica simulate``, ``lorica sweep`` and ``lorica demo``."""

from __future__ import annotations

import os
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lorica.common.cli import PlanArgument, SetOption
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan_io import load_plan

_INTERRUPTED = 130


def simulate(
    plan: PlanArgument = None,
    settings: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default runs/<date-time>.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the interrupted run in this folder.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the results of an earlier run in --out.")
    ] = False,
) -> None:
    """Simulate a federation on this machine and write its results to a folder.

    Without a plan, a small default plan on the packaged synthetic data set is run. For your own
    data: --set data.train=my.csv --set data.text=COLUMN --set data.label=COLUMN
    """
    if resume is not None:
        if plan is not None or settings or out is not None or force:
            raise LoricaError(
                Code.PLAN_MISMATCH,
                "--resume goes on with the plan in the folder and takes no other options.",
            )
        from lorica.simulations.simulate import resumable

        _simulate(resumable(resume), resume, resume=True, force=False)
    else:
        folder = out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
        _simulate(load_plan(plan, settings or []), folder, resume=False, force=force)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/demo"),
    settings: SetOption = None,
) -> None:
    """Four hospitals with synthetic notes train one classifier under ε = 8: a minute or two.

    Replaces the results of an earlier demo in the same folder.
    """
    plan = Path(str(files("lorica.simulations") / "plans" / "demo.toml"))
    _simulate(load_plan(plan, settings or []), out, resume=False, force=True)


def sweep(
    file: Annotated[Path, typer.Argument(help="The sweep: variants and axes, in TOML.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default runs/<name of the file>.")
    ] = None,
) -> None:
    """Run a grid of simulations, draw it, and go on where an earlier call was interrupted.

    Example file: [variants.head] "adapter.kind" = "head" · [variants.lora] "training.lora" =
    "always" · axes = { "privacy.epsilon" = [1, 3, 8], "simulation.seed" = [0, 1, 2] }
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from lorica.simulations.sweep import run_sweep
    from lorica.simulations.sweep_page import sweep_table

    console, folder = Console(), out or Path("runs") / file.stem
    try:
        results = run_sweep(file, folder, console)
    except KeyboardInterrupt:
        console.print("\nInterrupted. The same command goes on with what is left.")
        sys.exit(_INTERRUPTED)
    console.print(sweep_table(results))
    console.print(f"results in {folder}", highlight=False)


simulate.help_panel = demo.help_panel = sweep.help_panel = "Simulations"  # type: ignore[attr-defined]


def _simulate(plan: RunPlan, out: Path, *, resume: bool, force: bool) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    console = Console()
    with console.status("loading the model and the data"):
        try:
            from lorica.simulations.simulate import Simulation
        except ModuleNotFoundError as error:
            raise LoricaError(
                Code.PACKAGE_MISSING,
                f"Simulations need the package {error.name}.",
                mend="pip install 'lorica[simulation,embedded]'",
            ) from error
        from lorica.simulations.tables import closing_table, comparison_table

        simulation = Simulation(plan, out, console)
    try:
        summary = simulation.run(resume=resume, replace=force)
    except KeyboardInterrupt:
        console.print(
            f"\nInterrupted. All whole rounds are kept; go on with: lorica simulate --resume {out}",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(_INTERRUPTED)
    console.print(comparison_table(summary))
    console.print(closing_table(summary, out))
