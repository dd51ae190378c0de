"""The ``lorica`` command: what it prints, where, and with which exit status."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.console import Console

from lorica.common.cli import main
from lorica.common.cli.errors import print_error
from lorica.common.errors import CATALOGUE, Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.io import load_plan
from lorica.common.saved.given import read_given
from lorica.common.saved.predict import Predictor
from tests.saved_adapters import random_adapter

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def started(tmp_path: Path) -> Run:
    """``started("plan", "check")``: the command in a process and folder of its own."""

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from lorica.common.cli import main; main()", *arguments],
            cwd=tmp_path,
            env=os.environ | {"COLUMNS": "200", "PYTHONUTF8": "1"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=600,
            check=False,
        )

    return start


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("plan", "check")``: what the command does in a folder of its own, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["lorica", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        status = int(ended.value.code or 0)
        return subprocess.CompletedProcess(arguments, status, output.out, output.err)

    return start


@pytest.mark.process
def test_a_process_of_its_own_ends_as_a_call_does(run: Run, started: Run) -> None:
    """Exit status, output and errors, of an answer and of a refusal."""
    for arguments in (("explain", "308"), ("plan", "check", "none.toml")):
        there, here = started(*arguments), run(*arguments)
        assert (there.returncode, there.stdout, there.stderr) == (
            here.returncode,
            here.stdout,
            here.stderr,
        )


@pytest.mark.process
def test_the_version_is_the_installed_one(started: Run) -> None:
    done = started("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"lorica {version('lorica')}\n", "")


@pytest.mark.parametrize("arguments", [("--help",), ()])
def test_help_lists_the_commands_of_all_packages(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    for command in ("simulate", "demo", "predict", "plan", "explain"):
        assert f"│ {command} " in done.stdout, command


@pytest.mark.parametrize("code", ["308", "LOR-308", "lor-308"])
def test_explain_says_what_a_code_means_and_how_to_mend_it(run: Run, code: str) -> None:
    done = run("explain", code)
    words = " ".join(done.stdout.replace("│", " ").split())
    entry = Code.DATA_TOO_FEW_RECORDS.entry
    assert done.returncode == 0
    for text in ("LOR-308", entry.title, entry.meaning, f"How to mend it: {entry.mend}"):
        assert text in words


def test_explain_without_a_code_lists_them_all(run: Run) -> None:
    done = run("explain")
    assert done.returncode == 0
    for code, entry in CATALOGUE.items():
        assert code.value in done.stdout and entry.title in done.stdout


@pytest.mark.parametrize("code", ["999", "LOR-0", "", "help me", "[bold]"])
def test_an_unknown_code_is_a_usage_error(run: Run, code: str) -> None:
    done = run("explain", code)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no error code" in done.stderr and "Traceback" not in done.stderr


def test_the_printed_defaults_are_a_plan_file_equal_to_the_defaults(
    run: Run, tmp_path: Path
) -> None:
    done = run("plan", "defaults")
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "plan.toml").write_text(done.stdout, encoding="utf-8")
    assert load_plan(tmp_path / "plan.toml") == RunPlan()


def test_a_checked_plan_is_printed_whole_with_its_fingerprint(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[task]\nlabels = ["naïve", "b"]\n', encoding="utf-8")
    done = run("plan", "check", "mine.toml", "--set", "privacy.epsilon=3")
    assert (done.returncode, done.stderr) == (0, "")
    expected = load_plan(tmp_path / "mine.toml", ["privacy.epsilon=3"])
    assert done.stdout.startswith(f"# fingerprint {expected.fingerprint}\n")
    (tmp_path / "printed.toml").write_text(done.stdout, encoding="utf-8")
    assert load_plan(tmp_path / "printed.toml") == expected


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--set", "privacy.epsilon=-1"), "LOR-103", "privacy.epsilon"),
        (("--set", "privacy.epsilom=1"), "LOR-102", "Did you mean 'privacy.epsilon'?"),
        (("--set", "nonsense"), "LOR-101", "section.key=value"),
        (("none.toml",), "LOR-101", "none.toml"),
        (("--set", "data.text=[/bold]", "--set", "adapter.rank=[red]0"), "LOR-103", "[red]0"),
    ],
)
def test_a_plan_error_goes_to_stderr_with_code_and_mend_and_exit_status_11(
    run: Run, arguments: tuple[str, ...], code: str, said: str
) -> None:
    done = run("plan", "check", *arguments)
    assert (done.returncode, done.stdout) == (11, "")
    assert done.stderr.startswith(f"error {code}")
    assert said in done.stderr
    assert "\nhow to mend it  " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("nonesuch",), ("plan", "nonesuch"), ("--nonesuch",)])
def test_an_unknown_command_or_option_is_a_usage_error(
    run: Run, arguments: tuple[str, ...]
) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "nonesuch" in done.stderr and "Traceback" not in done.stderr


def test_an_error_is_printed_as_it_is_without_markup_or_wrapping() -> None:
    buffer = io.StringIO()
    detail = "[bold]no markup[/bold] " + "long " * 100 + "C:\\path"
    print_error(LoricaError(Code.DATA_COLUMN, detail), Console(file=buffer, width=40))
    assert buffer.getvalue().splitlines() == [
        f"error LOR-302  {detail}",
        f"how to mend it  {Code.DATA_COLUMN.entry.mend}",
    ]


@pytest.fixture
def adapter(tmp_path: Path, small_backbone: Path) -> Path:
    return random_adapter(tmp_path / "adapter", small_backbone, ["lost", "pain", "rash"])


Predict = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def predict(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Predict:
    """``predict(…, stdin=b"")``: exit status, output and errors of ``lorica predict``."""

    def start(*arguments: str, stdin: bytes = b"", folder: Path = adapter) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lorica", "predict", "-a", str(folder), *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return start


TEXTS = ["my card is lost", "the doctor was tired"]


def test_arguments_and_lines_on_stdin_are_classified_alike(predict: Predict, adapter: Path) -> None:
    status, printed, errors = predict(*TEXTS)
    assert (status, errors) == (0, "")
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert [row["predicted_label"] for row in rows] == [p.label for p in Predictor(adapter)(TEXTS)]
    assert predict(stdin="\n".join(TEXTS).encode()) == (0, printed, "")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_stay_in_their_place(predict: Predict, end: str) -> None:
    status, printed, errors = predict(stdin=end.join([TEXTS[0], "", " ", TEXTS[1], ""]).encode())
    assert status == 0
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [row["text"] for row in rows] == [TEXTS[0], "", " ", TEXTS[1]]
    assert [row["predicted_label"] is None for row in rows] == [False, True, True, False]
    assert "2 of 4 rows hold no text" in errors


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_file_is_classified_into_a_file_of_the_named_format(
    predict: Predict, adapter: Path, tmp_path: Path, suffix: str
) -> None:
    source, result = tmp_path / "in.csv", tmp_path / f"out.{suffix}"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "note"), *enumerate(TEXTS)])
    arguments = ("--file", str(source), "--text", "note", "--output", str(result))
    assert predict(*arguments) == (0, "", "")
    given = read_given(result, RunPlan(), text="note")
    rows = given.rows
    assert given.texts == TEXTS
    assert [row["id"] for row in rows] == ["0", "1"]
    assert [row["predicted_label"] for row in rows] == [p.label for p in Predictor(adapter)(TEXTS)]


@pytest.mark.parametrize(
    ("arguments", "stdin", "code"),
    [
        (("card", " "), b"", Code.DATA_EMPTY_TEXT),
        (("--file", "none.csv"), b"", Code.DATA_NOT_FOUND),
        (("--backbone", "./none", "card"), b"", Code.BACKBONE_NOT_FOUND),
        ((), b"caf\xe9\n", Code.DATA_ENCODING),
        (("card", "--output", "none/out.csv"), b"", Code.STORAGE_DENIED),
    ],
)
def test_prediction_errors_have_the_exit_status_of_their_area(
    predict: Predict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    stdin: bytes,
    code: Code,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, printed, errors = predict(*arguments, stdin=stdin)
    assert (status, printed) == (LoricaError(code, "").exit_status, "")
    assert errors.startswith(f"error {code.value}") and "how to mend it" in errors


def test_a_folder_that_is_no_adapter_ends_with_status_12(predict: Predict, tmp_path: Path) -> None:
    status, printed, errors = predict("card", folder=tmp_path)
    assert (status, printed) == (12, "")
    assert errors.startswith("error LOR-206")


def test_an_errors_text_cannot_steer_the_terminal() -> None:
    """As a site, a file or Flower may have worded parts of it."""
    buffer = io.StringIO()
    text = "first \x1b[2J\x9b31m\x07 line\nsecond \u202e line"
    error = LoricaError(Code.ENGINE_FAILED, text, mend="\x1b]0;owned\x07")
    print_error(error, Console(file=buffer, width=80))
    shown = buffer.getvalue()
    assert all(line.isprintable() for line in shown.splitlines())
    assert "first" in shown and "second" in shown
