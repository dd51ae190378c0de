"""Texts held in a file: the same records, and nothing left in the folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorica.client.data import held
from lorica.client.mechanism.evaluation import set_aside
from lorica.common.errors import Code
from lorica.common.plan import RunPlan

TEXTS = [f"näive text {i} 日本" * (i % 5 + 1) for i in range(9000)]


@pytest.fixture
def source(tmp_path: Path) -> str:
    rows = "".join(f"{text},{'xy'[i % 2]},u{i // 2}\n" for i, text in enumerate(TEXTS))
    (tmp_path / "d.csv").write_text("text,label,unit\n" + rows)
    return "d.csv"


def test_records_on_disk_are_those_in_memory(
    source: str, tmp_path: Path, read: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = read(source=source, unit="unit")
    monkeypatch.setattr(held, "IN_MEMORY_CHARACTERS", 1000)
    mapped = read(source=source, unit="unit")
    assert isinstance(inside.texts, list)
    assert isinstance(mapped.texts, held.MappedTexts)
    assert list(mapped.texts) == inside.texts == TEXTS
    assert (mapped.labels, mapped.units) == (inside.labels, inside.units)
    assert [mapped.texts[row] for row in (0, 8999, -1, 5000)] == [
        TEXTS[row] for row in (0, 8999, -1, 5000)
    ]
    with pytest.raises(IndexError):
        mapped.texts[9000]
    rows = [8999, 3, 3, 4096]
    taken, again = mapped.take(rows), inside.take(rows)
    assert list(taken.texts) == again.texts
    assert list(taken.take([1, 0]).texts) == again.take([1, 0]).texts
    assert list(mapped.texts[10:14]) == TEXTS[10:14]
    plan = RunPlan().replace(rounds={"evaluate_every": 1})
    assert (set_aside(mapped, plan, b"s") == set_aside(inside, plan, b"s")).all()


def test_no_file_with_a_name_is_made(
    source: str, tmp_path: Path, read: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "IN_MEMORY_CHARACTERS", 0)
    records = read(source=source)
    assert [path.name for path in tmp_path.iterdir()] == ["d.csv"]
    assert records.texts[1] == TEXTS[1]


def test_a_fault_late_in_the_source_leaves_nothing(
    source: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of texts is half-written when the ragged row comes: it is gone, too."""
    monkeypatch.setattr(held, "IN_MEMORY_CHARACTERS", 0)
    with (tmp_path / source).open("a") as file:
        file.write("\n".join(["x,y,z"] * 40_000) + "\nragged\n")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    assert "line 49002" in refused(Code.DATA_MALFORMED, source=source)
    assert [path.name for path in tmp_path.iterdir()] == ["d.csv"]
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208
