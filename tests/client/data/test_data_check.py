"""``lorica site data check``: figures against what was planted, and that nothing is sent."""

from __future__ import annotations

import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lorica.client.cli import app
from lorica.client.data.check.overview import NOTICE
from lorica.client.data.check.suspects import foretold
from lorica.client.data.check.tallies import KeyTally, Lengths, hashed
from lorica.common.errors import Code, LoricaError

COLUMNS = ("note", "dept", "patient", "seen", "code", "ward", "copy")


def write(folder: Path) -> None:
    """Notes with one leak of every kind."""
    rows = []
    for i in range(600):
        dept = ("heart", "skin", "lungs")[i % 3]
        rows.append([f"case {i} came in tired", dept, f"p{i // 2}", f"2026-01-{i % 28 + 1:02d}"])
        rows[-1] += [f"{dept[0]}-{i}", f"w{i % 7}", dept]
    for i in range(60):
        rows[i * 3][0] = f"the heart of number {i}"
    rows[1][0] = "write to anna.muster@example.org"
    rows[2][0] = "call +49 170 1234567 please"
    rows[4][0], rows[5][0] = "The SAME words 1", "the same words, 2!"
    rows += [list(rows[10]) for _ in range(5)]
    rows += [[rows[10][0], rows[10][1], "p9999", *rows[10][3:]]]
    rows[20][0] = " "
    lines = [",".join(COLUMNS), *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    (folder / "d.csv").write_text("\n".join(lines) + "\n")
    (folder / "site.toml").write_text(
        '[site]\nname = "north"\n[data]\nsource = "d.csv"\ntext = "note"\nlabel = "dept"\n'
        'unit = "patient"\n'
    )


def check(folder: Path, *more: str) -> str:
    command = ["data", "check", "--config", str(folder / "site.toml"), "--backbone", "", *more]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200", "TERM": "dumb"})
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Any]:
    write(tmp_path)
    return dict(json.loads(check(tmp_path, "--json")))


def test_figures_are_those_of_the_records(found: dict[str, Any]) -> None:
    assert next(iter(found)) == "notice"
    assert found["records"] == 606
    assert found["labels"] == {"skin": 206, "heart": 200, "lungs": 200}
    assert found["missing"] == dict.fromkeys(COLUMNS, 0) | {"note": 1}
    assert found["duplicates_in_units"]["repeated"] == 5
    assert found["duplicates"]["repeated"] == 6
    assert found["duplicates"]["mixed"] == 1  # one text and label, two patients
    assert found["units"]["keys"] == 301
    assert found["units"]["sizes"] == {"1": 300, "4": 1, "16": 0, "100": 0}
    assert found["units"]["largest"] == 7
    assert found["dates"] == {"seen": ["2026-01-01", "2026-01-28"]}
    assert found["characters"]["longest"] == len("write to anna.muster@example.org")


def test_every_planted_leak_is_suspected_and_nothing_else(found: dict[str, Any]) -> None:
    what = Counter(suspect["what"] for suspect in found["suspects"])
    assert what == {
        "label in the text": 1,
        "one text, several labels": 1,
        "column equals label": 1,
        "column foretells label": 1,
        "identifier in the text": 2,
    }
    said = " ".join(suspect["detail"] for suspect in found["suspects"])
    expected = ["'heart' stands in 30.0%", "'copy' equals", "'code', its digits left out"]
    for part in (*expected, "e-mail", "telephone"):
        assert part in said
    assert "'ward'" not in said


def test_the_first_line_says_that_it_must_not_leave(tmp_path: Path) -> None:
    write(tmp_path)
    shown = check(tmp_path)
    assert shown.splitlines()[0] == NOTICE
    for part in ("606", "Leak suspects", "heart", "2026-01-28", "most alike"):
        assert part in shown


def test_nothing_is_sent_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    check(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_names_in_the_data_cannot_steer_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('[site]\nname = "n"\n[data]\nsource = "d.csv"\n')
    (tmp_path / "d.csv").write_text("text,label\na,\x1b[31mred\nb,[bold]x\n")
    shown = check(tmp_path)
    assert "\x1b" not in shown
    assert "[bold]x" in shown


def test_tokens_are_counted_with_a_backbone_at_hand(tmp_path: Path, small_backbone: Path) -> None:
    write(tmp_path)
    found = json.loads(check(tmp_path, "--json", "--backbone", str(small_backbone)))
    assert found["tokens"]["longest"] >= 6
    lost = json.loads(check(tmp_path, "--json", "--backbone", str(tmp_path / "none")))
    assert lost["tokens"] == {}


def test_data_without_records_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('[site]\nname = "n"\n[data]\nsource = "d.csv"\n')
    (tmp_path / "d.csv").write_text("text,label\n")
    with pytest.raises(LoricaError) as caught:
        check(tmp_path)
    assert caught.value.code is Code.DATA_MALFORMED


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2)), max_size=60))
def test_a_tally_counts_as_counting_by_hand_does(rows: list[tuple[int, int]]) -> None:
    tally = KeyTally()
    for start in range(0, len(rows), 7):
        part = rows[start : start + 7]
        tally.add([str(k) for k, _ in part], np.array([v for _, v in part], dtype=np.int64))
    sizes = Counter(k for k, _ in rows)
    groups = tally.groups((1, 4))
    assert groups.keys == len(sizes)
    assert groups.repeated == len(rows) - len(sizes)
    assert groups.sizes == {b: sum(n > b for n in sizes.values()) for b in (1, 4)}
    assert groups.mixed == sum(len({v for q, v in rows if q == k}) > 1 for k in sizes)
    assert groups.exact


def test_a_full_tally_estimates_within_a_few_percent_in_bounded_memory() -> None:
    """40,000 keys, each three times, room for 10,000 rows: against the true counts."""
    tally = KeyTally(most=10_000)
    names = hashed(str(i) for i in range(40_000))
    for values in range(3):
        tally.add(names, np.full(len(names), values, dtype=np.int64))
        assert sum(len(keys) for keys, _ in tally._kept) <= 10_000
    groups = tally.groups((2, 3))
    assert not groups.exact
    assert groups.keys == pytest.approx(40_000, rel=0.15)
    assert groups.repeated == 2 * groups.keys  # all rows of a kept key are kept
    assert groups.sizes == {2: groups.keys, 3: 0}


def test_quantiles_of_lengths_are_numpys() -> None:
    drawn = np.random.default_rng(0).integers(1, 500, 10_001)
    lengths = Lengths()
    lengths.add(drawn[:5000])
    lengths.add(drawn[5000:])
    for share in (0.5, 0.95, 0.99):
        expected = np.quantile(drawn, share, method="inverted_cdf")
        assert lengths.quantile(share) == expected


def test_a_column_of_noise_foretells_nothing() -> None:
    """Leave-one-out: pairs that agree by chance are not counted as knowledge."""
    draw = np.random.default_rng(0)
    values = [str(v) for v in draw.integers(0, 5000, 10_000)]
    right, judged = foretold(values, [str(v) for v in draw.integers(0, 10, 10_000)])
    assert right < 0.25 * judged
    assert foretold(["a", "a", "b", "c", ""], ["x", "x", "y", "z", "y"]) == (2, 2)
