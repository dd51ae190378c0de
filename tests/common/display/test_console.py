"""What is printed reaches a terminal as it is, whoever wrote it."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from lorica.common.cli.errors import print_error
from lorica.common.display.console import Console
from lorica.common.display.text import plain, printable
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.logs import PlainFormatter

HOSTILE = [
    "[/x]",
    "[conceal]hidden[/conceal]",
    "[link=https://example.org]here[/link]",
    ":smiley:",
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b8m",
    "\u202eturned\u2066",
    "\r\x08\x00",
]


def printed(*what: object, **options: object) -> str:
    file = io.StringIO()
    Console(file=file, width=500, **options).print(*what)
    return file.getvalue()


def sane(text: str) -> bool:
    return text.replace("\n", "").isprintable()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_nothing_in_a_text_is_markup_and_nothing_steers_the_terminal(
    text: str, terminal: bool
) -> None:
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    for shown in (text, Text(text), Text.assemble(text, ("b", "")), table):
        out = printed(shown, force_terminal=terminal, color_system=None)
        if not terminal:
            assert sane(out)
        assert "\x1b]0" not in out and "\x1b[2J" not in out and "\u202e" not in out
        if text.isprintable():
            assert text in out


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_printed_without_control_characters(text: str) -> None:
    assert sane(printed(text).replace("\t", ""))
    assert sane(printed(Text(text)).replace("\t", ""))


@given(st.text(max_size=400), st.integers(1, 300))
def test_plain_is_one_line_of_at_most_so_many_characters(text: str, most: int) -> None:
    shown = plain(text, most)
    assert shown.isprintable() and len(shown) <= most
    assert shown == printable(text) or shown.endswith("…")


def test_what_is_waited_for_is_shown_as_it_is() -> None:
    status = Console(file=io.StringIO()).status("[/x]")
    assert str(status.status) == "[/x]"


def test_markup_cannot_be_asked_for() -> None:
    assert "[bold]" in printed("[bold]x")
    file = io.StringIO()
    Console(file=file, markup=True).print("[bold]x[/bold]", markup=True)
    assert file.getvalue() == "[bold]x[/bold]\n"


def test_an_error_whose_text_is_markup_is_shown_whole() -> None:
    file = io.StringIO()
    error = LoricaError(Code.RUN_STATE, "Run [/x]\x1b[2J failed: [conceal]why[/]", mend="[/y]")
    print_error(error, Console(file=file, width=200))
    assert "Run [/x]" in file.getvalue() and "[conceal]why[/]" in file.getvalue()
    assert sane(file.getvalue())


def test_a_line_of_the_log_is_one_line_and_harmless() -> None:
    said = "run %s", ("a\n2026-01-01 INFO lorica.site: approved\x1b[2J\u202e",)
    record = logging.LogRecord("lorica", logging.INFO, "x", 1, *said, None)
    line = PlainFormatter("%(levelname)s %(message)s").format(record)
    assert line.isprintable() and line.startswith("INFO run a 2026")
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "\x1b" not in PlainFormatter("%(message)s").format(record)


@pytest.mark.parametrize(
    "line",
    [
        "from rich.console import Console",
        "from rich import print",
        "import rich.console\n\nrich.console.Console().print(f'{__name__}')",
        "from rich.text import Text\n\nText.from_markup('[bold]x')",
        "import typer\n\ntyper.echo('x')",
        "from rich.panel import Panel",
        "print('x')",
    ],
)
def test_lint_finds_whoever_goes_another_way_to_the_terminal(tmp_path: Path, line: str) -> None:
    """The rule of pyproject.toml, on a module as it might be written tomorrow."""
    root = Path(__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise",
         "--config", str(root / "pyproject.toml"), "--stdin-filename", "common/tomorrow.py", "-"],
        input=f"{line}\n", capture_output=True, text=True, cwd=root, check=False,
    )  # fmt: skip
    assert found.returncode == 1 and ("TID251" in found.stdout or "T201" in found.stdout)
