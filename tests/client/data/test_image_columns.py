"""Images in columns of Parquet, Arrow and Hugging Face data sets: at a site and of a plan's own."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from lorica.client.config.data import SiteData
from lorica.client.data.check.overview import overview
from lorica.client.data.reading import roles_of, site_batches
from lorica.common.data import images as image_module
from lorica.common.data.image_columns import IMAGE_ROWS
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks.run_data import load_data
from lorica.common.tasks.run_data import test_data as held_test_data
from lorica.simulations.run.simulate import Simulation
from tests.images import image_plan, make_image_backbone

Read, Refused = Callable[..., Any], Callable[..., str]
LABELS = ["heart", "skin", "heart"]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


PIXELS = [np.full((6, 9, 3), shade, np.uint8) for shade in (10, 20, 30)]
CELLS = [encoded(pixels) for pixels in PIXELS]


def write(path: Path, column: pa.Array, name: str = "image", **more: Any) -> Path:
    """A table of images as the ending says: "set" is a data set as `datasets` saves it."""
    table = pa.table({name: column, "label": LABELS[: len(column)], **more})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        import datasets

        kept = datasets.Dataset(table).cast_column(name, datasets.Image())
        kept.save_to_disk(str(path))
    return path


COLUMNS = {
    "bytes": pa.array(CELLS, pa.binary()),
    "large bytes": pa.array(CELLS, pa.large_binary()),
    "bytes and path": pa.array([{"bytes": cell, "path": None} for cell in CELLS], STRUCT),
}


def assert_same(records: Records, pixels: list[np.ndarray] = PIXELS) -> None:
    assert records.images is not None
    assert len(records.images) == len(pixels)
    for found, wanted in zip(records.images, pixels, strict=True):
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", ["d.parquet", "d.arrow", "set"])
def test_images_are_read_to_the_pixel_at_a_site_and_by_a_plan(
    tmp_path: Path, read: Read, name: str, column: str
) -> None:
    if name == "set" and column == "large bytes":
        pytest.skip("datasets keeps images as bytes and path")
    path = write(tmp_path / name, COLUMNS[column], who=["p", "q", "p"])
    at_site = read(source=name, image="image", unit="who")
    assert_same(at_site)
    assert (at_site.labels, at_site.units) == (LABELS, ["p", "q", "p"])
    assert len(set(at_site.texts)) == 3  # told apart by their pixels
    plan = RunPlan().replace(
        task={"kind": "image-classification", "labels": ["heart", "skin"]},
        data={"test": str(path)},
    )
    assert_same(held_test_data(plan))


def test_other_names_texts_and_further_columns_of_bytes(tmp_path: Path, read: Read) -> None:
    """Only the named column is decoded; a text beside it is the record's text."""
    junk = pa.array([b"\x00thumbnail"] * 3, pa.binary())
    write(tmp_path / "d.parquet", COLUMNS["bytes"], "scan", text=["a", "b", "c"], thumb=junk)
    records = read(source="d.parquet", image="scan")
    assert_same(records)
    assert list(records.texts) == ["a", "b", "c"]
    plan = RunPlan().replace(
        task={"kind": "image-classification", "labels": ["heart", "skin"]},
        data={"test": str(tmp_path / "d.parquet"), "image": "scan"},
    )
    assert_same(held_test_data(plan))


def test_large_images_are_made_smaller(tmp_path: Path, read: Read) -> None:
    cell = encoded(np.zeros((300, 600, 3), np.uint8))
    write(tmp_path / "d.parquet", pa.array([cell], pa.binary()))
    (image,) = read(source="d.parquet", image="image", image_side=32).images
    assert image.shape == (32, 64, 3)


def test_rows_are_counted_over_batches_and_corrupt_images_named(
    tmp_path: Path, refused: Refused
) -> None:
    count = 2 * IMAGE_ROWS
    for name in ("d.parquet", "d.arrow", "set"):
        cells = [CELLS[0]] * (count - 1) + [CELLS[0][:45]]
        table = pa.table({"image": pa.array(cells, pa.binary()), "label": ["x"] * count})
        if name == "set":
            import datasets

            whole = datasets.Dataset(table).cast_column("image", datasets.Image(decode=False))
            whole.save_to_disk(str(tmp_path / name))
        elif name == "d.arrow":
            with pa.ipc.new_stream(tmp_path / name, table.schema) as writer:
                writer.write_table(table)
        else:
            pq.write_table(table, tmp_path / name)
        detail = refused(Code.DATA_IMAGE, source=name, image="image")
        assert f"column 'image', row {count} " in detail, detail


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        (None, Code.DATA_IMAGE),
        (b"", Code.DATA_IMAGE),
        (b"GIF89a", Code.DATA_IMAGE),
        (b"no image at all", Code.DATA_IMAGE),
        (CELLS[1][:40], Code.DATA_IMAGE),
        ("bomb", Code.DATA_TOO_LARGE),
    ],
    ids=["null", "empty", "cut", "text", "half", "bomb"],
)
@pytest.mark.parametrize("struct", [False, True], ids=["bytes", "struct"])
def test_what_is_no_image_is_a_sentence_with_its_row(
    tmp_path: Path, refused: Refused, cell: Any, code: Code, struct: bool
) -> None:
    if cell == "bomb":
        file = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(file, "PNG")
        cell = file.getvalue()
    cells = [CELLS[0], cell, CELLS[2]]
    column = pa.array(cells, pa.binary())
    if struct:
        column = pa.array([{"bytes": one, "path": None} for one in cells], STRUCT)
    write(tmp_path / "d.parquet", column)
    detail = refused(code, source="d.parquet", image="image")
    assert "d.parquet, column 'image', row 2" in detail
    plan = RunPlan().replace(
        task={"kind": "image-classification", "labels": ["heart", "skin"]},
        data={"train": str(tmp_path / "d.parquet")},
    )
    with pytest.raises(LoricaError) as caught:
        load_data(plan)
    assert caught.value.code is code and "row 2" not in caught.value.public_reason


def test_bytes_beyond_the_limit_are_refused(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "d.parquet", COLUMNS["bytes"])
    monkeypatch.setattr(image_module, "FILE_BYTES", 50)
    refused(Code.DATA_TOO_LARGE, source="d.parquet", image="image")


def test_paths_are_followed_within_the_sources_folder_alone(
    tmp_path: Path, read: Read, refused: Refused
) -> None:
    (tmp_path / "data" / "scans").mkdir(parents=True)
    for number, cell in enumerate(CELLS):
        (tmp_path / "data" / "scans" / f"{number}.png").write_bytes(cell)
    (tmp_path / "secret.png").write_bytes(CELLS[0])

    def named(*paths: str) -> None:
        cells = [{"bytes": None, "path": path} for path in paths]
        write(tmp_path / "data" / "d.parquet", pa.array(cells, STRUCT))

    absolute = str(tmp_path / "data" / "scans" / "2.png")
    named("scans/0.png", "scans/1.png", absolute)
    assert_same(read(source="data/d.parquet", image="image"))
    for path in ("../secret.png", str(tmp_path / "secret.png"), "/etc/hostname"):
        named("scans/0.png", path)
        detail = refused(Code.DATA_OUTSIDE, source="data/d.parquet", image="image")
        assert "row 2" in detail
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    named("link.png")
    refused(Code.DATA_OUTSIDE, source="data/d.parquet", image="image")
    named("scans/none.png")
    refused(Code.DATA_NOT_FOUND, source="data/d.parquet", image="image")


def test_columns_that_hold_something_else_are_sentences(tmp_path: Path, refused: Refused) -> None:
    write(tmp_path / "d.parquet", pa.array(["a.png", "b.png", "c.png"]))
    detail = refused(Code.DATA_MALFORMED, source="d.parquet", image="image")
    assert "holds string, not images" in detail
    detail = refused(Code.DATA_COLUMN, source="d.parquet", image="scan")
    assert "'scan'" in detail and "image, label" in detail
    write(tmp_path / "d.parquet", COLUMNS["bytes and path"])
    detail = refused(Code.DATA_MALFORMED, source="d.parquet", text="image")
    assert "holds bytes, not text" in detail


def test_the_sites_data_check_tells_images_sizes(tmp_path: Path) -> None:
    write(tmp_path / "d.parquet", COLUMNS["bytes"])
    data = {"source": "d.parquet", "image": "image"}
    made = SiteData.model_validate(data)
    found = overview(site_batches(made, tmp_path, None), roles_of(made, tmp_path), "d.parquet")
    assert found.records == 3 and found.images
    assert found.columns == ["label"]


def test_a_run_learns_from_images_in_a_parquet_file(tmp_path: Path) -> None:
    """The labels are taken from the file, a fifth is set aside, three sites train."""
    draw, labels, cells = np.random.default_rng(0), ["dark", "light"] * 45, []
    for label in labels:
        shade = 60 if label == "dark" else 190
        cells.append(encoded(draw.integers(shade - 40, shade + 40, (20, 18, 3), dtype=np.uint8)))
    table = pa.table({"image": pa.array(cells, pa.binary()), "label": labels})
    pq.write_table(table, tmp_path / "d.parquet")
    plan = image_plan(
        make_image_backbone(tmp_path / "vit", "vit"),
        task={"kind": "image-classification", "labels": []},
        data={"train": str(tmp_path / "d.parquet")},
        privacy={"epsilon": float("inf"), "delta": 1e-3},
        rounds={"count": 12},
    )
    quiet = Console(file=io.StringIO(), width=100)
    summary = Simulation(plan, tmp_path / "run", quiet).run(report=False)
    assert summary["headline"] == "accuracy" and summary["score"] > 0.9
