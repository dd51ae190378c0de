"""The `lorica` command."""

from __future__ import annotations

from lorica.common.cli.main import PlanArgument, SetOption, app, build, main, print_error

__all__ = ["PlanArgument", "SetOption", "app", "build", "main", "print_error"]
