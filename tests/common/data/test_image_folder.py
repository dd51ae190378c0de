"""Folders of images as they are in the world: hidden ones, archives of macOS, train and test."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image

from lorica.common.data.image_folder import parts_of
from lorica.common.data.records import read_records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.subject import DataPlan
from lorica.common.tasks.run_data import load_data


def picture(path: Path, shade: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path)


def plan_of(folder: Path) -> RunPlan:
    return RunPlan().replace(
        data={"train": str(folder)}, task={"kind": "image-classification"}, adapter={"kind": "head"}
    )


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/0-checkpoint.png",
        "__MACOSX/dim/._0.png",
        "dim/._0.png",
        "dim/.trash/0.png",
        ".git/0.png",
    ],
)
def test_hidden_files_and_folders_are_left_out_and_said(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for label in ("dim", "bright"):
        picture(tmp_path / label / "0.png")
    picture(tmp_path / name)
    with caplog.at_level(logging.WARNING, "lorica.data"):
        found = read_records(str(tmp_path), DataPlan())
    assert sorted(found.labels) == ["bright", "dim"]
    assert next(part for part in name.split("/") if part[0] in "._") in caplog.text


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "val"), ("train", "testing")])
def test_a_folder_divided_into_parts_gives_training_and_test_data(
    names: tuple[str, str], tmp_path: Path
) -> None:
    for part, count in zip(names, (3, 2), strict=True):
        for label, shade in (("dim", 60), ("bright", 180)):
            for number in range(count):
                picture(tmp_path / part / label / f"{number}.png", shade)
    data = load_data(plan_of(tmp_path))
    assert (len(data.train), len(data.test)) == (6, 4)
    assert set(data.train.labels) == set(data.test.labels) == {"dim", "bright"}
    assert data.train.images is not None
    shades = {"dim": 60, "bright": 180}
    for image, label in zip(data.train.images, data.train.labels, strict=True):
        assert image.mean() == shades[label]


@pytest.mark.parametrize(
    "names", [("train", "test", "other"), ("train",), ("bus", "train"), ("test", "val")]
)
def test_other_folders_are_labels(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        picture(tmp_path / name / "x" / "0.png")
    assert parts_of(tmp_path) == {}
    assert sorted(read_records(str(tmp_path), DataPlan()).labels) == sorted(names)


def test_labels_named_as_parts_are_labels_when_they_hold_no_folders(tmp_path: Path) -> None:
    for name in ("train", "test"):
        picture(tmp_path / name / "0.png")
    assert sorted(read_records(str(tmp_path), DataPlan()).labels) == ["test", "train"]


def test_a_site_reads_the_part_that_it_names(tmp_path: Path) -> None:
    from lorica.client.config.site import SiteConfig
    from lorica.client.data.reading import read_records as read_site

    for part, count in (("train", 3), ("validation", 2), ("test", 1)):
        for number in range(count):
            picture(tmp_path / "d" / part / "a" / f"{number}.png")

    def read(**data: str) -> int:
        given = {"site": {"name": "n"}, "data": {"source": "d", **data}}
        return len(read_site(SiteConfig.model_validate(given), tmp_path))

    assert (read(), read(split="val"), read(split="test")) == (3, 2, 1)
    with pytest.raises(LoricaError) as caught:
        read(split="holdout")
    assert caught.value.code is Code.DATA_NOT_FOUND
