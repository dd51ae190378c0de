"""Commands that other packages add, loaded when they are called.

They come as entry points of the group "lorica.commands" (name = command, value = a function or a
Typer app). A package that is not installed leaves no broken command behind. What `lorica --help`
says of Lorica's own is written here, so that help does not wait for the packages it is about.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click
import typer
from typer.core import TyperCommand, TyperGroup

GROUP = "lorica.commands"

KNOWN: dict[str, tuple[str, str]] = {
    "audit": (
        "Simulations",
        "Attack a site's real training and measure how much it leaks: a lower bound on ε.",
    ),
    "backbone": ("Models", "Look at pretrained models before a run is built on them."),
    "coordinator": ("Coordinators", "Look after a coordinator."),
    "demo": (
        "Simulations",
        "Four hospitals with synthetic notes train one classifier under ε = 8: a minute.",
    ),
    "monitor": ("Coordinators", "Watch runs, sites and alerts in a browser."),
    "run": ("Coordinators", "Submit, watch, stop and resume runs of a federation."),
    "runs": (
        "Runs",
        "Look at runs in the run store: list, show, compare, export, report, prune.",
    ),
    "simulate": (
        "Simulations",
        "Simulate a federation on this machine and write its results to a folder.",
    ),
    "site": ("Institutions", "Run and look after a site."),
    "sweep": (
        "Simulations",
        "Run a grid of simulations, draw it, and go on where an earlier call was interrupted.",
    ),
}
"""Command -> its panel and its line in the help."""


class LazyCommands(TyperGroup):
    """Typer's group, which also has the commands of entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return [*super().list_commands(ctx), *sorted(_points().keys() - self.commands.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by name: of this package, or one that is loaded when it is called."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in _points():
            return own
        if cmd_name not in KNOWN:
            return load(cmd_name)
        panel, line = KNOWN[cmd_name]
        return _Added(cmd_name, panel, line)


class _Added(TyperCommand):
    """What help says of a command; the command itself when it is called."""

    def __init__(self, name: str, panel: str, line: str) -> None:
        super().__init__(name, help=line, rich_help_panel=panel)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """The context of the real command, which runs in this one's place."""
        return load(str(self.name)).make_context(info_name, args, parent, **extra)


@cache
def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


@cache
def load(name: str) -> click.Command:
    """The real command of an entry point."""
    loaded: Any = _points()[name].load()
    shell = typer.Typer(rich_markup_mode="rich", add_completion=False)
    if isinstance(loaded, typer.Typer):
        shell.add_typer(loaded, name=name, rich_help_panel=loaded.rich_help_panel)
    else:
        shell.command(name, rich_help_panel=getattr(loaded, "help_panel", None))(loaded)
    made = typer.main.get_group(shell).commands[name]
    made.name = name
    return made
