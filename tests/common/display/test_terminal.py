"""Any terminal: ASCII letters, few columns, a pipe. No traceback, no half table."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lorica.common.display.tables import Table
from lorica.common.display.terminal import in_ascii, prepare
from lorica.common.errors import CATALOGUE

CELLS = ["site-00 of the northern hospitals", "ε = 8.00 of 10", "0.9 ± 0.1", "a" * 30]


def rendered(width: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    prepare(stream)
    table = Table("site", "spent", "score", "note", title="Sites", title_justify="left")
    for _ in range(2):
        table.add_row(*CELLS)
    Console(file=stream, width=width).print(table)
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [12, 20, 40, 60, 80, 200])
def test_no_cell_is_cut_at_any_width(width: int) -> None:
    shown = rendered(width)
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    bare = "".join(c for c in shown if c.isalnum())
    assert bare.count("a" * 30) == 2 or "".join(shown.split()).count("a") >= 60
    for word in ("northern", "hospitals", "spent", "score"):
        assert shown.count(word) >= 1 or width < 40
    assert "".join(c for c in shown if c in "ε±").count("ε") == 2


def test_few_columns_become_paragraphs_with_their_headers() -> None:
    lines = [line.rstrip() for line in rendered(40).splitlines()]
    assert "spent  ε = 8.00 of 10" in lines
    assert lines.count("score  0.9 ± 0.1") == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "koi8-r"])
def test_what_a_terminal_cannot_show_is_written_otherwise(encoding: str) -> None:
    shown = rendered(200, encoding)
    assert "epsilon = 8.00 of 10" in shown or "ε = 8.00 of 10" in shown
    assert "site-00 of the northern hospitals" in shown


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("ε = ∞, δ ≤ 1e-5 …", "epsilon = inf, delta <= 1e-5 ..."),
        ("naïve café", "naive cafe"),
        ("┏━┓┃╰", "+-+|+"),
        ("█▓⠋", "###"),
        ("Б😀", "??"),
    ],
)
def test_characters_have_plain_forms(text: str, plain: str) -> None:
    assert in_ascii(text) == plain


def test_every_error_of_the_catalogue_can_be_said_in_ascii() -> None:
    for entry in CATALOGUE.values():
        assert "?" not in in_ascii(f"{entry.title}{entry.meaning}{entry.mend}".replace("?", ""))


@pytest.mark.process
@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252", "COLUMNS": "40"},
    ],
    ids=["C", "C without UTF-8", "ASCII", "Windows, 40 columns"],
)
@pytest.mark.parametrize(
    "command",
    [
        ["explain"],
        ["explain", "401"],
        ["plan", "defaults"],
        ["plan", "check", "--set", "data.text=ε"],
        ["plan", "check", "--set", "privacy.epsilon=∞"],
        ["--help"],
        ["predict", "--help"],
    ],
    ids=" ".join,
)
def test_commands_run_on_legacy_terminals(
    command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from lorica.common.cli import main; main()", *command],
        env={**os.environ, **environment},
        cwd=tmp_path,
        capture_output=True,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    assert done.returncode in (0, 11)
    if command[0] == "explain":
        assert done.stdout.count(b"LOR-") >= (1 if len(command) > 1 else len(CATALOGUE))
