"""Folders of images as they are in the world: hidden ones, archives of macOS, train and test."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorica.common.data.image_folder import parts_of
from lorica.common.data.images import decode_image
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


@pytest.mark.parametrize("ending", [".heic", ".HEIC", ".avif", ".jp2", ".dng"])
def test_images_of_formats_that_are_not_read_are_refused_and_never_left_out(
    ending: str, tmp_path: Path
) -> None:
    for label in ("dim", "bright"):
        picture(tmp_path / label / "0.png")
    (tmp_path / "dim" / f"IMG_0001{ending}").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(LoricaError, match="IMG_0001") as caught:
        read_records(str(tmp_path), DataPlan())
    assert caught.value.code is Code.DATA_IMAGE and "magick" in caught.value.mend


def test_a_jpeg_by_any_of_its_names_is_an_image_and_other_files_are_none(tmp_path: Path) -> None:
    for name in ("dim/0.jfif", "dim/1.JPE", "bright/0.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 90).save(tmp_path / name, "JPEG")
    for name in ("dim/Thumbs.db", "desktop.ini", "notes.txt"):
        (tmp_path / name).write_text("x")
    assert sorted(read_records(str(tmp_path), DataPlan()).labels) == ["bright", "dim", "dim"]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("drawn", ["in colour", "in transparency"])
def test_what_is_drawn_in_transparency_alone_is_refused_not_read_as_black(
    mode: str, drawn: str, tmp_path: Path
) -> None:
    """Logos and scanned signatures: every pixel black, and most of them invisible."""
    shape = np.zeros((8, 8), np.uint8)
    shape[2:5, 1:7] = 255
    path = tmp_path / "x.png"
    if mode == "P":
        image = Image.fromarray((shape > 0).astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 0, 0, 0] if drawn == "in transparency" else [0, 0, 0, 9, 9, 9])
        image.save(path, transparency=0)
    else:
        ground = shape // 2 if drawn == "in colour" else np.zeros_like(shape)
        Image.merge(
            mode, [Image.fromarray(ground)] * (len(mode) - 1) + [Image.fromarray(shape)]
        ).save(path)
    if drawn == "in colour":
        assert np.ptp(decode_image(path, "x", 0)) > 0
        return
    with pytest.raises(LoricaError, match="transparency alone") as caught:
        decode_image(path, "x", 0)
    assert caught.value.code is Code.DATA_IMAGE and "flatten" in caught.value.mend


def test_a_black_image_that_can_be_seen_is_an_image(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 255)).save(tmp_path / "x.png")
    assert not decode_image(tmp_path / "x.png", "x", 0).any()
