"""Commands that installed packages add to `lorica`, and what help says of them unloaded."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from typer.testing import CliRunner

from lorica.common.cli.added import GROUP, KNOWN, load
from lorica.common.cli.command import app

HEAVY = ("torch", "numpy", "pydantic", "transformers", "flwr", "sqlalchemy")


def test_what_help_says_of_a_command_is_what_the_command_says() -> None:
    for name, (panel, line) in KNOWN.items():
        command = load(name)
        assert (command.rich_help_panel, command.help.splitlines()[0]) == (panel, line), name  # type: ignore[attr-defined, union-attr]


def test_every_entry_point_has_a_line_in_the_help() -> None:
    names = {point.name for point in entry_points(group=GROUP) if "lorica." in point.value}
    assert names == set(KNOWN)
    shown = CliRunner().invoke(app, ["--help"], terminal_width=200).output
    assert all(name in shown for name in names)


def test_a_loaded_command_has_its_own_options_and_subcommands() -> None:
    runner = CliRunner()
    assert "--out" in runner.invoke(app, ["simulate", "--help"], terminal_width=200).output
    assert "ledger" in runner.invoke(app, ["site", "--help"], terminal_width=200).output
    wrong = runner.invoke(app, ["simulat"])
    assert wrong.exit_code == 2


@pytest.mark.process
@pytest.mark.parametrize("asked", ["--version", "--help"])
def test_help_and_version_load_nothing_heavy(asked: str) -> None:
    code = (
        f"import sys; sys.argv = ['lorica', {asked!r}]\n"
        "from lorica.common.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "[]"
