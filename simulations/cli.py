"""``lorica simulate``, ``lorica sweep`` and ``lorica demo``."""

from __future__ import annotations

import os
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lorica.common.cli.options import PlanArgument, SetOption
from lorica.common.display.console import Console
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.home import home
from lorica.common.plan import RunPlan
from lorica.common.plan.io import load_plan
from lorica.common.privacy.kept import keep_calibrations

CALIBRATIONS = "calibrations"
"""Folder beneath the user's, for noise that simulations have calibrated."""

_INTERRUPTED = 130


StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Run store to keep the run in; default LORICA_STORE, else one in the user's folder.",
        show_default=False,
    ),
]
NoStoreOption = Annotated[
    bool, typer.Option("--no-store", help="Keep the run in no store, in its folder alone.")
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        "--track", metavar="mlflow:URI|tensorboard:DIR", help="Send rounds there; repeatable."
    ),
]


def simulate(
    plan: PlanArgument = None,
    settings: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default runs/<date-time>.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the interrupted run in this folder.")
    ] = None,
    changed_data: Annotated[
        bool,
        typer.Option("--changed-data", help="With --resume: go on although the data have changed."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the results of an earlier run in --out.")
    ] = False,
    store: StoreOption = None,
    no_store: NoStoreOption = False,
    track: TrackOption = None,
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
        from lorica.simulations.run.simulate import resumable

        loaded, folder = resumable(resume), resume
    else:
        folder = out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
        loaded = load_plan(plan, settings or [])
    _simulate(
        loaded,
        folder,
        resume=resume is not None,
        changed_data=changed_data,
        force=force,
        store=store,
        no_store=no_store,
        track=track,
    )


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/demo"),
    settings: SetOption = None,
    store: StoreOption = None,
    no_store: NoStoreOption = False,
    track: TrackOption = None,
) -> None:
    """Four hospitals with synthetic notes train one classifier under ε = 8: a minute.

    Replaces the results of an earlier demo in the same folder.
    """
    plan = Path(str(files("lorica.simulations") / "plans" / "demo.toml"))
    _simulate(
        load_plan(plan, settings or []),
        out,
        resume=False,
        force=True,
        store=store,
        no_store=no_store,
        track=track,
    )


def sweep(
    file: Annotated[Path, typer.Argument(help="The sweep: variants and axes, in TOML.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default runs/<name of the file>.")
    ] = None,
    store: StoreOption = None,
    no_store: NoStoreOption = False,
) -> None:
    """Run a grid of simulations, draw it, and go on where an earlier call was interrupted.

    Example file, one line each: axes = { "privacy.epsilon" = \\[1, 3, 8], "simulation.seed" =
    \\[0, 1, 2] } · variants.head = { "adapter.kind" = "head" } · variants.lora = {
    "training.lora" = "always" }
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    keep_calibrations(home() / CALIBRATIONS)
    from lorica.simulations.run.keep import store_of
    from lorica.simulations.sweep.page import sweep_table
    from lorica.simulations.sweep.run import run_sweep

    console, folder = Console(), out or Path("runs") / file.stem
    try:
        results = run_sweep(file, folder, console, store=store_of(store, no_store))
    except KeyboardInterrupt:
        console.print("\nInterrupted. The same command goes on with what is left.")
        sys.exit(_INTERRUPTED)
    console.print(sweep_table(results))
    console.print(f"results in {folder}", highlight=False)


simulate.help_panel = demo.help_panel = sweep.help_panel = "Simulations"  # type: ignore[attr-defined]


def _simulate(
    plan: RunPlan,
    out: Path,
    *,
    resume: bool,
    force: bool,
    changed_data: bool = False,
    store: str | None,
    no_store: bool,
    track: list[str] | None,
) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    keep_calibrations(home() / CALIBRATIONS)
    console = Console()
    with console.status("loading the model and the data"):
        try:
            from lorica.simulations.run.keep import Keep, store_of
            from lorica.simulations.run.simulate import Simulation
        except ModuleNotFoundError as error:
            raise LoricaError(
                Code.PACKAGE_MISSING,
                f"Simulations need the package {error.name}.",
                mend="pip install 'lorica[simulation,embedded]'",
            ) from error
        from lorica.server.results.kept_own import KeptOwn
        from lorica.simulations.reports.benefit import benefit_table
        from lorica.simulations.reports.tables import closing_table, comparison_table
        from lorica.simulations.reports.verdict import verdict

        keep = Keep(store_of(store, no_store), trackers=track or [])
        simulation = Simulation(plan, out, console, keep=keep)
    try:
        summary = simulation.run(resume=resume, replace=force, changed_data=changed_data)
    except KeyboardInterrupt:
        console.print(
            f"\nInterrupted. All whole rounds are kept; go on with: lorica simulate --resume {out}",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(_INTERRUPTED)
    except LoricaError as error:
        if error.code is Code.RUN_STOPPED:
            mend = f"Go on from the last whole round with: lorica simulate --resume {out}"
            raise LoricaError(error.code, error.detail, mend=mend) from error
        raise
    console.print(comparison_table(summary))
    if summary.get("benefit"):
        console.print(benefit_table(summary))
    if bits := KeptOwn.from_json(summary.get("kept_own") or {}):
        console.print(Text(bits.sentence), soft_wrap=True)
    console.print(closing_table(summary, out))
    if said := verdict(summary):
        console.print(Text(said, style="bold yellow"))
