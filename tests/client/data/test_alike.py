"""At a site: labels that only look alike and ids in several spellings, when read and checked."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorica.client.config.site import SiteConfig
from lorica.client.data.check.overview import overview
from lorica.client.data.check.terminal import show
from lorica.client.data.reading import read_records, roles_of, site_batches
from lorica.common.data.names.plan_labels import label_indices
from lorica.common.errors import Code

Read, Refused = Callable[..., Any], Callable[..., str]

LABELS = ["heart", "Heart", "skin\u00a0", "skin"] * 5


@pytest.fixture
def source(tmp_path: Path) -> str:
    ids = [f"{row % 4}{'.0' if row % 3 == 0 else ''}" for row in range(len(LABELS))]
    rows = [[f"note {row}", label, ids[row]] for row, label in enumerate(LABELS)]
    rows += [["one more", "skin", "P7"], ["and one", "heart", "p7"]]
    with (tmp_path / "d.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "label", "patient"], *rows])
    return "d.csv"


def test_a_site_refuses_them_by_name(source: str, refused: Refused) -> None:
    assert "'heart'" in (said := refused(Code.DATA_ALIKE, source=source))
    assert "'Heart'" in said


def test_merged_labels_are_the_plans_that_look_like_them(source: str, read: Read) -> None:
    found = read(source=source, alike="merge")
    indices = label_indices(found, ["Skin", "HEART"], where="here")
    expected = [1 if label.lower() == "heart" else 0 for label in LABELS]
    assert indices == [*expected, 0, 1]


def test_merged_labels_go_by_the_class_map(source: str, read: Read) -> None:
    found = read(source=source, alike="merge", classes={"HEART": "Cardiology", "skin": "Derma"})
    assert set(label_indices(found, ["Cardiology", "Derma"], where="here")) == {0, 1}


def test_kept_labels_are_as_they_were(source: str, read: Read) -> None:
    assert len(set(read(source=source, alike="keep").labels)) == 4


def test_a_site_whose_tasks_have_no_labels_reads_answers_as_they_are(
    source: str, tmp_path: Path
) -> None:
    given = {"site": {"name": "n"}, "data": {"source": source}, "policy": {"tasks": ["causal-lm"]}}
    found = read_records(SiteConfig.model_validate(given), tmp_path)
    assert {"heart", "Heart"} <= set(found.labels)


def test_the_check_names_labels_and_ids(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    given = {"site": {"name": "n"}, "data": {"source": source, "unit": "patient"}}
    data = SiteConfig.model_validate(given).data
    found = overview(site_batches(data, tmp_path, None), roles_of(data, tmp_path), "d.csv")
    assert {frozenset(group) for group in found.alike} == {
        frozenset({"heart", "Heart"}),
        frozenset({"skin", "skin\u00a0"}),
    }
    assert found.units is not None
    assert found.units.keys == 6
    assert found.ids_alike is not None
    assert (found.ids_alike.one, found.ids_alike.alike) == (4, 1)
    show(found, Console(width=200))
    shown = capsys.readouterr().out
    assert "'skin\\xa0'" in shown
    assert "'P7' and 'p7'" in shown
