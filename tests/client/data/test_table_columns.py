"""Columns beside text or image: every kind of source carries them, and bad cells are sentences."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from lorica.client.admission.policy import check_records
from lorica.client.cli import app
from lorica.client.config.site import load_site
from lorica.client.data import held
from lorica.client.data.fetch_main import main as fetch_into
from lorica.client.data.fetched import Fetched
from lorica.client.data.reading import read_records
from lorica.common.data.records import Records
from lorica.common.data.table import Table
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan

Read, Refused = Callable[..., Any], Callable[..., str]
AGES, SEXES = ["61", "", "4.5e1"], ["f", "m", ""]


def rows() -> list[dict[str, Any]]:
    pairs = zip(AGES, SEXES, strict=True)
    return [
        {"text": f"note {i}", "label": "xy"[i % 2], "age": age, "sex": sex, "more": "-"}
        for i, (age, sex) in enumerate(pairs)
    ]


def as_text(delimiter: str) -> str:
    lines = [list(rows()[0]), *(list(row.values()) for row in rows())]
    return "".join(delimiter.join(line) + "\n" for line in lines)


def write(folder: Path, kind: str) -> str:
    """The rows as a source of this kind; returns its name."""
    if kind in ("csv", "tsv"):
        (folder / f"d.{kind}").write_text(as_text("," if kind == "csv" else "\t"))
    elif kind == "jsonl":
        numbers = [61, None, 45.0]
        content = [row | {"age": number} for row, number in zip(rows(), numbers, strict=True)]
        (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    elif kind == "parquet":
        content = pa.Table.from_pylist(rows())
        ages = pa.array([61.0, float("nan"), 45.0])  # as pandas writes what is missing
        place = content.schema.get_field_index("age")
        pq.write_table(content.set_column(place, "age", ages), folder / "d.parquet")
    elif kind == "sqlite":
        with sqlite3.connect(folder / "d.sqlite") as database:
            database.execute("CREATE TABLE notes (text, label, age REAL, sex)")
            for row, age in zip(rows(), [61, None, 45], strict=True):
                values = row["text"], row["label"], age, row["sex"]
                database.execute("INSERT INTO notes VALUES (?, ?, ?, ?)", values)
        return "sqlite:///d.sqlite"
    else:
        import datasets

        datasets.Dataset.from_list(rows()).save_to_disk(folder / "d")
        return "d"
    return f"d.{kind}"


def numbers(records: Records) -> list[float | None]:
    assert records.table is not None
    return [float(cell) if cell else None for cell in records.table.cells("age")]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "sqlite", "dataset"])
def test_every_source_carries_the_columns_that_are_asked_for(
    kind: str, tmp_path: Path, read: Read
) -> None:
    query = {"query": "SELECT * FROM notes"} if kind == "sqlite" else {}
    source = write(tmp_path, kind)
    records = read(source=source, columns=["age", "sex"], **query)
    assert numbers(records) == [61, None, 45]
    assert records.table.names == ["age", "sex"] and records.table.cells("sex") == SEXES
    taken = records.take([2, 0])
    assert (numbers(taken), taken.texts) == ([45, 61], ["note 2", "note 0"])
    assert read(source=source, **query).table is None


@pytest.mark.parametrize("kind", ["images", "dicom"])
def test_a_table_of_images_brings_its_columns(kind: str, tmp_path: Path, read: Read) -> None:
    from tests.client.data.test_connectors import dicom

    names = []
    for number in range(3):
        names.append(f"{number}.{'png' if kind == 'images' else 'dcm'}")
        (tmp_path / "scans").mkdir(exist_ok=True)
        if kind == "images":
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "scans" / names[-1])
        else:
            dicom(tmp_path / "scans" / names[-1], np.full((8, 8), number))
    lines = [",".join((n, "x", age, sex)) for n, age, sex in zip(names, AGES, SEXES, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["file,label,alter,sex", *lines]))
    records = read(source="scans", table="t.csv", columns={"age": "alter", "sex": "sex"})
    assert numbers(records) == [61, None, 45] and len(records.images) == 3
    assert numbers(records.take([1, 2])) == [None, 45]


def test_rows_that_were_fetched_have_them_too(tmp_path: Path) -> None:
    """The process that reads over a network hands on those columns, and no others."""
    write(tmp_path, "csv")
    site = tmp_path / "site.toml"
    site.write_text('[site]\nname = "n"\n[data]\nsource = "d.csv"\ncolumns = ["age", "sex"]\n')
    with (tmp_path / "rows").open("w+b") as file:
        assert fetch_into(site, os.dup(file.fileno())) == 0
        file.seek(0)
        with pa.ipc.open_stream(file) as stream:
            assert set(stream.schema.names) == {"text", "label", "age", "sex"}
        file.seek(0)
        config = load_site(site)
        fetched = read_records(config, tmp_path, Fetched(file))
    assert fetched == read_records(config, tmp_path)


def test_what_is_no_column_is_a_sentence(tmp_path: Path, refused: Refused) -> None:
    for kind in ("csv", "jsonl", "parquet"):
        said = refused(Code.DATA_COLUMN, source=write(tmp_path, kind), columns=["age", "height"])
        assert "no column 'height'" in said and "age" in said
    said = refused(Code.DATA_COLUMN, source="d.csv", columns={"height": "cm"})
    assert "'cm' (data.columns, for 'height')" in said
    (tmp_path / "long.csv").write_text(f"text,label,age\na,x,1\nb,x,{'9' * 201}\n")
    said = refused(Code.DATA_VALUE, source="long.csv", columns=["age"])
    assert "record 2" in said and "'age'" in said and "9999" not in said


@pytest.mark.parametrize("columns", [["label"], ["text"], ["who"], ["age", "age"], {"a": 1}])
def test_columns_that_cannot_be_are_refused_in_site_toml(columns: Any, tmp_path: Path) -> None:
    import tomli_w

    content = {"source": "d.csv", "unit": "who", "columns": columns}
    path = tmp_path / "site.toml"
    path.write_text(tomli_w.dumps({"site": {"name": "n"}, "data": content}))
    with pytest.raises(LoricaError) as caught:
        load_site(path)
    assert caught.value.code is Code.SITE_CONFIG and "columns" in caught.value.detail


def test_records_that_differ_in_a_cell_alone_are_no_duplicates(tmp_path: Path, read: Read) -> None:
    (tmp_path / "d.csv").write_text("text,label,age\na,x,1\na,x,2\na,x,1\na,x,\n")
    assert numbers(read(source="d.csv", columns=["age"], duplicates="drop")) == [1, 2, None]
    assert len(read(source="d.csv", duplicates="drop")) == 1


def test_records_held_on_disk_keep_their_cells(
    tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "csv")
    inside = read(source="d.csv", columns=["age", "sex"])
    monkeypatch.setattr(held, "IN_MEMORY_CHARACTERS", 0)
    mapped = read(source="d.csv", columns=["age", "sex"])
    assert isinstance(mapped.texts, held.MappedTexts)
    assert mapped.table == inside.table and mapped.take([1]).table == inside.take([1]).table
    assert replace(inside, table=None) != inside


def test_a_plan_that_asks_for_a_column_that_the_site_does_not_offer_is_refused(
    tmp_path: Path, read: Read
) -> None:
    """The coordinator hears that a column is missing, not which the site has."""
    plan = RunPlan().replace(
        task={"kind": "text-table-classification", "labels": ["x", "y"]},
        table={"columns": ["height"], "centers": [170.0], "scales": [10.0]},
    )
    write(tmp_path, "csv")
    for columns in ([], ["age"]):
        with pytest.raises(LoricaError) as caught:
            check_records(plan, read(source="d.csv", columns=columns), where="Site north")
        assert caught.value.code is Code.DATA_COLUMN and "'height'" in caught.value.detail
        assert "data.columns" in str(caught.value.mend)
        assert "age" not in caught.value.public_reason
    other = plan.replace(table={"columns": ["age"]})
    check_records(other, read(source="d.csv", columns=["age"]), where="Site north")


def test_cells_come_back_as_they_were_written() -> None:
    cells = {"a": [" 1", "ä", ""], "b": ["x" * 200, "", "y"]}
    table = Table.of(cells, "here")
    assert table.cells("a") == ["1", "ä", ""] and table.cells("b") == cells["b"]
    assert Table.joined([table.take([0]), table.take([1, 2])]) == table
    assert table.take([]).cells("a") == [] and table.row(1) == ["ä".encode(), b""]


def test_the_data_check_shows_what_the_columns_hold(tmp_path: Path) -> None:
    """Against numpy."""
    ages = np.random.default_rng(0).normal(50, 20, 500).round(2)
    lines = [f"t {i},x,{'' if i % 10 == 0 else age},{'fm'[i % 2]}" for i, age in enumerate(ages)]
    lines[5] = "t 5,x,old,m"
    (tmp_path / "d.csv").write_text("\n".join(["text,label,alter,sex", *lines]))
    (tmp_path / "site.toml").write_text(
        '[site]\nname = "n"\n[data]\nsource = "d.csv"\ncolumns = { age = "alter", sex = "sex" }\n'
    )
    command = ["data", "check", "--config", str(tmp_path / "site.toml"), "--backbone", ""]
    environment = {"COLUMNS": "200", "TERM": "dumb"}
    said = CliRunner().invoke(app, [*command, "--json"], env=environment).stdout
    found = json.loads(said)["table"]
    there = np.array([age for i, age in enumerate(ages) if i % 10 and i != 5])
    age, sex = found["age"], found["sex"]
    assert (age["empty"], age["numbers"], age["example"]) == (50, len(there), "old")
    expected = [there.min(), there.max(), there.mean(), there.std()]
    keys = ("least", "greatest", "mean", "spread")
    assert [age[key] for key in keys] == pytest.approx(expected)
    assert sex["values"] == {"f": 250, "m": 250} and not age["values"]
    shown = CliRunner().invoke(app, command, env=environment).stdout
    assert "NOT ALL NUMBERS, such as 'old'" in shown and "f 250, m 250" in shown
