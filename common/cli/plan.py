"""``lorica plan …``: look at and check plans."""

from __future__ import annotations

import sys

import typer

from lorica.common.cli.options import PlanArgument, SetOption

plan_app = typer.Typer(no_args_is_help=True, help="Look at and check plans.")


@plan_app.command("defaults")
def plan_defaults() -> None:
    """Print the default plan, every field with its meaning: a file to start from."""
    from lorica.common.plan.io import documented_toml

    sys.stdout.write(documented_toml())


@plan_app.command("check")
def plan_check(plan: PlanArgument = None, settings: SetOption = None) -> None:
    """Check a plan and print it whole, with its fingerprint."""
    from lorica.common.plan.io import documented_toml, load_plan

    loaded = load_plan(plan, settings or [])
    sys.stdout.write(f"# fingerprint {loaded.fingerprint}\n\n{documented_toml(loaded)}")
