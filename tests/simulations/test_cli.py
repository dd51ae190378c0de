"""``lorica simulate`` as a person meets it: every mistake has a code and a sentence that helps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorica.common.cli import main
from lorica.common.errors import Code
from lorica.common.plan.io import load_plan
from tests.conftest import make_small_backbone

Lorica = Callable[..., tuple[int, str, str]]
"""Runs the command: arguments -> exit status, stdout, stderr."""

ROWS = [("lost my card", "money", "n", "p1"), ("a fever", "health", "s", "p2")] * 40
HEADER = "text,label,place,patient"


@pytest.fixture
def lorica(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Lorica:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lorica", *arguments])
        capsys.readouterr()  # what making the fixtures said
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small backbone of tests/conftest.py, made once for this module."""
    return make_small_backbone(tmp_path_factory.mktemp("cli") / "backbone")


@pytest.fixture
def good(tmp_path: Path, backbone: Path) -> list[str]:
    """Arguments of a run that works: data.csv with 80 rows, two sites of 32."""
    lines = [HEADER, *(",".join(row) for row in ROWS)]
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "data.train": "data.csv",
        "backbone.source": str(backbone),
        "training.expected_batch_size": "8",
        "training.lora_rounds": "1",
        "training.local_steps": "1",
        "rounds.count": "2",
        "privacy.delta": "1e-3",
        "simulation.sites": "2",
    }
    return with_settings(["simulate", "--out", "out"], **settings)


def with_settings(arguments: list[str], **settings: str) -> list[str]:
    return [*arguments, *(part for k, v in settings.items() for part in ("--set", f"{k}={v}"))]


def refused(answer: tuple[int, str, str], code: Code, *sentences: str) -> None:
    """The command ended with the code's own status and said this, and nothing ran."""
    status, out, err = answer
    assert f"error {code.value}" in err, err
    assert status == 10 + int(code.value[4])
    assert "how to mend it" in err
    assert "Traceback" not in err + out
    for sentence in sentences:
        assert sentence in err
    assert "round 0" not in out


def test_a_good_run_ends_well_and_says_what_it_was(
    lorica: Lorica, good: list[str], tmp_path: Path
) -> None:
    status, out, err = lorica(*good)
    assert (status, err) == (0, "")
    assert "round 2/2" in out
    assert "NOT private" in out, "seeded noise is no privacy, and that is said"
    assert (tmp_path / "out" / "summary.json").is_file()


SETTINGS: dict[str, tuple[dict[str, str], Code, list[str]]] = {
    "no such column for the text": (
        {"data.text": "note"},
        Code.DATA_COLUMN,
        ["'note'", "text, label, place, patient", "--set data.text="],
    ),
    "no such column for the label": (
        {"data.label": "class"}, Code.DATA_COLUMN, ["'class'", "text, label, place, patient"],
    ),
    "no such column for the unit": (
        {"data.unit": "who"}, Code.DATA_COLUMN, ["'who'", "text, label, place, patient"],
    ),
    "no such column for sites": (
        {"simulation.partition": "by-column", "simulation.column": "hospital"},
        Code.DATA_COLUMN,
        ["'hospital'", "text, label, place, patient"],
    ),
    "by column without a column": (
        {"simulation.partition": "by-column"}, Code.PLAN_BAD_VALUE, ["simulation.column"],
    ),
    "no such data": ({"data.train": "no.csv"}, Code.DATA_NOT_FOUND, ["no.csv"]),
    "data that are a folder": ({"data.train": "."}, Code.DATA_KIND, []),
    "no such packaged data": (
        {"data.train": "embedded:x"}, Code.DATA_NOT_FOUND, ["'x'", "clinic-notes"],
    ),
    "no such test data": ({"data.test": "no.csv"}, Code.DATA_NOT_FOUND, ["no.csv"]),
    "a batch larger than the site": (
        {"training.mode": "local", "training.expected_batch_size": "33"},
        Code.DATA_TOO_FEW_RECORDS,
        ["site-0", "32", "33"],
    ),
    "more sites than records": ({"simulation.sites": "65"}, Code.DATA_PARTITION, ["64", "65"]),
    "epsilon 0": ({"privacy.epsilon": "0"}, Code.PLAN_BAD_VALUE, ["privacy.epsilon", "above 0"]),
    "epsilon below 0": ({"privacy.epsilon": "-1"}, Code.PLAN_BAD_VALUE, ["privacy.epsilon"]),
    "epsilon nan": ({"privacy.epsilon": "nan"}, Code.PLAN_BAD_VALUE, ["privacy.epsilon"]),
    "epsilon of text": ({"privacy.epsilon": "much"}, Code.PLAN_BAD_VALUE, ["privacy.epsilon"]),
    "delta of 1/N": ({"privacy.delta": "0.03125"}, Code.PRIVACY_DELTA, ["32", "0.0312"]),
    "delta 0": ({"privacy.delta": "0"}, Code.PLAN_BAD_VALUE, ["privacy.delta"]),
    "a clip norm without bound": (
        {"privacy.clip_norm": "inf"}, Code.PLAN_BAD_VALUE, ["privacy.clip_norm"],
    ),
    "a learning rate without bound": (
        {"training.learning_rate": "inf"}, Code.PLAN_BAD_VALUE, ["training.learning_rate"],
    ),
    "training data with another label": (
        {"task.labels": "money,illness"}, Code.DATA_UNFIT, ["LOR-306", "'health'"],
    ),
    "one label in the plan": ({"task.labels": '["money"]'}, Code.PLAN_BAD_VALUE, ["two labels"]),
    "no such backbone": ({"backbone.source": "./no"}, Code.BACKBONE_NOT_FOUND, ["./no"]),
    "another backbone": ({"backbone.sha256": "0" * 64}, Code.BACKBONE_HASH, ["0" * 64]),
    "no such layer": ({"adapter.layers": "[7]"}, Code.BACKBONE_UNSUPPORTED, ["layer 7"]),
    "no such module": (
        {"adapter.target_modules": "q_proj"}, Code.BACKBONE_UNSUPPORTED, ["'q_proj'", "query"],
    ),
    "a misspelt key": (
        {"privacy.epsilom": "1"}, Code.PLAN_UNKNOWN_KEY, ["Did you mean 'privacy.epsilon'"],
    ),
    "a misspelt method": (
        {"aggregation.method": "fedsdv"}, Code.PLAN_BAD_VALUE, ["Did you mean 'fedsvd'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", sorted(SETTINGS))
def test_a_mistaken_setting_is_refused_before_anything_is_written(
    lorica: Lorica, good: list[str], tmp_path: Path, mistake: str
) -> None:
    settings, code, sentences = SETTINGS[mistake]
    refused(lorica(*with_settings(good, **settings)), code, *sentences)
    assert not (tmp_path / "out").exists()


def test_a_model_in_a_relative_folder_is_found_later_from_anywhere(
    lorica: Lorica,
    good: list[str],
    backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/tiny").symlink_to(backbone)
    assert lorica(*with_settings(good, **{"backbone.source": "models/tiny"}))[0] == 0
    plan = load_plan(tmp_path / "out" / "plan.toml")
    assert plan.backbone.source == str(tmp_path / "models/tiny"), "the same for --resume"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    adapter = str(tmp_path / "out" / "adapter")
    status, out, err = lorica("predict", "--adapter", adapter, "lost my card")
    assert (status, err) == (0, "") and "lost my card" in out
    merged = lorica("export", adapter, "--out", "merged")
    assert merged[0] == 0, merged[2]
    beside = lorica("export", adapter)
    assert beside[0] == 0, beside[2]
    assert (tmp_path / "out" / "merged" / "config.json").is_file()
    slip = lorica("predict", "--adapter", adapter, "--backbone", "models/tiny", "lost my card")
    refused(slip, Code.BACKBONE_UNREACHABLE, "no folder models/tiny", "--backbone")
    slip = lorica("predict", "--adapter", adapter, "--backbone", "./tiny", "lost my card")
    refused(slip, Code.BACKBONE_NOT_FOUND, "./tiny", "elsewhere", "--backbone")


FILES: dict[str, tuple[bytes, Code, list[str]]] = {
    "Latin-1": ("text,label\nFièvre,a\n".encode("latin-1"), Code.DATA_ENCODING, ["UTF-8", "iconv"]),
    "half of a UTF-16": (
        b"\xff\xfe" + "text,label\nx,a\n".encode("utf-16-le")[:-1],
        Code.DATA_ENCODING,
        ["UTF-16"],
    ),
    "an empty text": (b"text,label\na,x\n  ,y\nb,y\n", Code.DATA_EMPTY_TEXT, ["record 2"]),
    "an empty label": (b"text,label\na,x\nb,\n", Code.DATA_MALFORMED, ["record 2", "label"]),
    "one label only": (b"text,label\n" + b"a,same\n" * 40, Code.DATA_TOO_FEW_LABELS, ["'same'"]),
    "no records": (b"text,label\n", Code.DATA_MALFORMED, ["no records"]),
    "nothing": (b"", Code.DATA_MALFORMED, ["header"]),
    "a column twice": (b"text,label,text\na,b,c\n", Code.DATA_MALFORMED, ["twice"]),
    "a field too many": (b"text,label\na,b\nc,d,e\n", Code.DATA_MALFORMED, ["line 3"]),
    "an open quote": (b'text,label\n"a,b\n', Code.DATA_MALFORMED, ["line"]),
    "one record": (b"text,label\na,b\n", Code.DATA_TOO_FEW_RECORDS, ["one record", "data.test"]),
}


@pytest.mark.parametrize("fault", sorted(FILES))
def test_a_faulty_file_is_refused_with_the_place_of_the_fault(
    lorica: Lorica, good: list[str], tmp_path: Path, fault: str
) -> None:
    content, code, sentences = FILES[fault]
    (tmp_path / "data.csv").write_bytes(content)
    refused(lorica(*good), code, *sentences)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("labels", ["money,health", "[]"], ids=["of the plan", "of training"])
def test_test_data_with_an_unknown_label_are_refused(
    lorica: Lorica, good: list[str], tmp_path: Path, labels: str
) -> None:
    """A misspelt label in a test file of its own must not become a class that nobody trains."""
    (tmp_path / "test.csv").write_text("text,label\nred skin,heatlh\n", encoding="utf-8")
    settings = {"data.test": "test.csv", "privacy.epsilon": "inf", "task.labels": labels}
    answer = lorica(*with_settings(good, **settings))
    refused(answer, Code.DATA_UNKNOWN_LABEL, "'heatlh'", "test")


def test_a_patient_at_two_sites_is_refused(lorica: Lorica, good: list[str], tmp_path: Path) -> None:
    rows = [*ROWS, ("a fever again", "health", "n", "p2")]
    (tmp_path / "data.csv").write_text("\n".join([HEADER, *map(",".join, rows)]), encoding="utf-8")
    crossed = {
        "data.test": "data.csv",
        "data.unit": "patient",
        "simulation.partition": "by-column",
        "simulation.column": "place",
    }
    refused(lorica(*with_settings(good, **crossed)), Code.DATA_PARTITION, "'p2'", "'n'", "'s'")


@pytest.mark.parametrize("setting", ["epsilon", "privacy=8", "=8", "privacy.epsilon"])
def test_a_setting_that_is_none_is_refused(lorica: Lorica, good: list[str], setting: str) -> None:
    refused(lorica(*good, "--set", setting), Code.PLAN_UNREADABLE, "section.key=value", setting)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, Code.PLAN_UNREADABLE),
        (b"not toml", Code.PLAN_UNREADABLE),
        (b"\xff\xfe", Code.PLAN_UNREADABLE),
        (b"[nonsense]\na = 1\n", Code.PLAN_UNKNOWN_KEY),
        (b"rounds = 3\n", Code.PLAN_BAD_VALUE),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused(
    lorica: Lorica, tmp_path: Path, content: bytes | None, code: Code
) -> None:
    if content is not None:
        (tmp_path / "plan.toml").write_bytes(content)
    refused(lorica("simulate", "plan.toml"), code)


def test_an_earlier_run_is_replaced_only_by_force(
    lorica: Lorica, good: list[str], tmp_path: Path
) -> None:
    good = with_settings(good, **{"privacy.epsilon": "inf"})
    assert lorica(*good)[0] == 0
    before = (tmp_path / "out" / "summary.json").read_bytes()
    refused(lorica(*good), Code.RUN_FOLDER_EXISTS, "out", "--resume")
    assert (tmp_path / "out" / "summary.json").read_bytes() == before
    status, _, _ = lorica(*with_settings(good, **{"simulation.seed": "1"}), "--force")
    assert status == 0
    assert (tmp_path / "out" / "summary.json").read_bytes() != before


def test_a_file_in_the_place_of_the_folder_is_refused(
    lorica: Lorica, good: list[str], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    refused(lorica(*good), Code.STORAGE_DENIED, "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("folder", ["nowhere", "empty", "file"])
def test_nothing_cannot_be_resumed(lorica: Lorica, tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    refused(lorica("simulate", "--resume", folder), Code.RUN_NOT_RESUMABLE, folder)
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    "more", [["plan.toml"], ["--set", "rounds.count=9"], ["--out", "other"], ["--force"]]
)
def test_resume_takes_no_other_options(lorica: Lorica, tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.toml").write_text("[rounds]\ncount = 2\n")
    (tmp_path / "plan.toml").write_text("")
    refused(lorica("simulate", "--resume", "run", *more), Code.PLAN_MISMATCH, "--resume")


def test_a_run_whose_plan_was_changed_is_not_resumed(
    lorica: Lorica, good: list[str], tmp_path: Path
) -> None:
    """A checkpoint made without privacy must not end as a run of ε = 8."""
    assert lorica(*with_settings(good, **{"privacy.epsilon": "inf"}))[0] == 0
    plan = tmp_path / "out" / "plan.toml"
    text = plan.read_text()
    assert "epsilon = inf" in text
    plan.write_text(text.replace("epsilon = inf", "epsilon = 8.0"))
    refused(lorica("simulate", "--resume", "out"), Code.PLAN_MISMATCH, "another plan")
