"""What people hand over in place of a table: named, with the mend that works on it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sqlite3
import subprocess
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from PIL import Image

from lorica.common.data.records import read_records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.subject import DataPlan

CSV = b"text,label\n" + b"a fever,x\nlost my card,y\n" * 30


def zipped(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), data)
    return content.getvalue()


def saved(kind: str, folder: Path) -> bytes:
    path = folder / "made"
    table = pa.table({"text": ["a"], "label": ["x"]})
    if kind == "parquet":
        pa.parquet.write_table(table, path)
    elif kind == "feather":
        pyarrow.feather.write_feather(table, path, compression="uncompressed")
    elif kind == "sqlite":
        with sqlite3.connect(path) as made:
            made.execute("CREATE TABLE notes (text, label)")
        made.close()
    else:
        Image.new("RGB", (4, 4)).save(path, kind)
    return path.read_bytes()


MADE = {
    "gzip": (gzip.compress(CSV), "gunzip"),
    "bzip2": (bz2.compress(CSV), "bunzip2"),
    "xz": (lzma.compress(CSV), "unxz"),
    "zip": (zipped(records_csv=CSV), "unzip"),
    "xlsx": (zipped(xl__workbook_xml=b"<workbook/>"), "save the sheet as CSV"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 500, "save the sheet as CSV"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "Export"),
    "page": (b"\n<!DOCTYPE html><html><table><tr><td>text</td></tr></table></html>", "Export"),
}
SAVED = {
    "parquet": "ends in .parquet",
    "feather": "ends in .arrow",
    "sqlite": "sqlite:///",
    "PNG": "folder",
    "JPEG": "folder",
}


@pytest.mark.parametrize("ending", [".csv", ".txt", ".jsonl", ".own", ""])
@pytest.mark.parametrize("kind", [*MADE, *SAVED])
def test_what_is_no_table_is_named_with_its_mend_whatever_its_ending(
    tmp_path: Path, kind: str, ending: str
) -> None:
    content, mend = MADE[kind] if kind in MADE else (saved(kind, tmp_path), SAVED[kind])
    path = tmp_path / f"records{ending}"
    path.write_bytes(content)
    with pytest.raises(LoricaError) as caught:
        read_records(str(path), DataPlan())
    assert caught.value.code is Code.DATA_KIND
    assert str(path) in caught.value.detail
    assert mend in caught.value.mend and "{" not in caught.value.mend


@pytest.mark.parametrize("name", ["BZh", "PAR1", "%PD", "7z", "PK", "GIF89a", "SQLite format 3"])
def test_a_column_may_be_called_as_such_files_begin(tmp_path: Path, name: str) -> None:
    path = tmp_path / "records.csv"
    path.write_text(f"{name},text,label\n1,a fever,x\n2,a card,y\n")
    assert read_records(str(path), DataPlan()).texts == ["a fever", "a card"]


@pytest.mark.parametrize("name", ["my records.csv", "records.csv.gz", "it's.csv"])
@pytest.mark.process
def test_the_mend_of_a_compressed_table_works_as_it_is_typed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(CSV))
    with pytest.raises(LoricaError) as caught:
        read_records(str(tmp_path / name), DataPlan())
    command = caught.value.mend.partition(": ")[2]
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    assert len(read_records(str(tmp_path / "NEW.csv"), DataPlan())) == 60
