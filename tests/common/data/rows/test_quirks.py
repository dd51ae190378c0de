"""Format by quirk: what everyday files look like is read alike, or refused with a code."""

from __future__ import annotations

import csv
import io
import json
import shlex
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from lorica.common.data.records import Records, read_records
from lorica.common.data.tables import read_table
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.io import load_plan
from lorica.common.plan.subject import DataPlan

Rows = list[dict[str, Any]]

ROWS: Rows = [
    {"text": 'a "quoted" word', "label": "näive", "patient": 7},
    {"text": "two\nlines, and a comma", "label": "Б", "patient": 1000},
    {"text": "tab\tand | and ;", "label": "näive", "patient": 7},
]


def delimited(rows: Rows, mark: str, end: str = "\n") -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=mark, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def as_text(rows: Rows, kind: str, end: str = "\n") -> str:
    if kind in ("csv", "txt"):
        return delimited(rows, ",", end)
    if kind == "tsv":
        return delimited(rows, "\t", end)
    if kind == "json":
        return json.dumps(rows, ensure_ascii=False, indent=1)
    return end.join(json.dumps(row, ensure_ascii=False) for row in rows) + end


def columnar(rows: Rows, kind: str, path: Path) -> None:
    table = pa.Table.from_pylist(rows)
    if kind == "parquet":
        pa.parquet.write_table(table, path)
    elif kind == "feather":
        pyarrow.feather.write_feather(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)


TEXT = ["csv", "tsv", "txt", "jsonl", "json", "ndjson"]
COLUMNAR = ["parquet", "feather", "arrow"]
QUIRKS: dict[str, Callable[[Rows], Rows]] = {
    "as they are": lambda rows: rows,
    "ids as fractions": lambda rows: [row | {"patient": float(row["patient"])} for row in rows],
    "another column first": lambda rows: [{"": number, **row} for number, row in enumerate(rows)],
    "a column of nothing": lambda rows: [row | {"more": None} for row in rows],
    "a column of lists": lambda rows: [row | {"more": [1, 2]} for row in rows],
    "a column of truth": lambda rows: [row | {"more": True} for row in rows],
}


def read(path: Path) -> Records:
    return read_records(str(path), DataPlan(), unit="patient")


def expected(found: Records) -> None:
    assert list(found.texts) == [row["text"] for row in ROWS]
    assert found.labels == [row["label"] for row in ROWS]
    assert found.units == ["7", "1000", "7"]


@pytest.mark.parametrize("quirk", QUIRKS)
@pytest.mark.parametrize("kind", TEXT + COLUMNAR)
def test_every_format_gives_the_same_records(kind: str, quirk: str, tmp_path: Path) -> None:
    path, rows = tmp_path / f"d.{kind}", QUIRKS[quirk](ROWS)
    if kind in COLUMNAR:
        columnar(rows, kind, path)
    else:
        path.write_text(as_text(rows, kind), encoding="utf-8", newline="")
    expected(read(path))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", TEXT)
def test_a_byte_order_mark_says_the_encoding(kind: str, encoding: str, tmp_path: Path) -> None:
    content = as_text(ROWS, kind)
    if encoding == "utf-16-be":
        content = "\ufeff" + content
    (tmp_path / f"d.{kind}").write_bytes(content.encode(encoding))
    expected(read(tmp_path / f"d.{kind}"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "latin-1", "cp1252"])
@pytest.mark.parametrize("kind", TEXT)
def test_without_a_mark_nothing_is_guessed(kind: str, encoding: str, tmp_path: Path) -> None:
    rows = [row | {"label": "näive"} for row in ROWS]
    (tmp_path / f"d.{kind}").write_bytes(as_text(rows, kind).encode(encoding))
    with pytest.raises(LoricaError) as caught:
        read(tmp_path / f"d.{kind}")
    assert caught.value.code is Code.DATA_ENCODING
    assert "iconv" in caught.value.mend


@pytest.mark.parametrize("change", ["\r\n", "no end", "blank lines"])
@pytest.mark.parametrize("kind", TEXT)
def test_line_ends_change_nothing(kind: str, change: str, tmp_path: Path) -> None:
    content = as_text(ROWS, kind, "\r\n" if change == "\r\n" else "\n")
    content = content.rstrip("\n") if change == "no end" else content
    content = content + "\n\n" if change == "blank lines" else content
    (tmp_path / f"d.{kind}").write_text(content, encoding="utf-8", newline="")
    expected(read(tmp_path / f"d.{kind}"))


@pytest.mark.parametrize("kind", TEXT + COLUMNAR)
def test_a_column_named_twice_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"d.{kind}"
    if kind in COLUMNAR:
        columns = [pa.array(["a parcel"]), pa.array(["x"]), pa.array(["shipping"])]
        table = pa.Table.from_arrays(columns, names=["text", "text", "label"])
        if kind == "parquet":
            pa.parquet.write_table(table, path)
        else:
            make = pa.ipc.new_file if kind == "feather" else pa.ipc.new_stream
            with make(path, table.schema) as writer:
                writer.write_table(table)
    elif kind in ("csv", "tsv", "txt"):
        mark = "\t" if kind == "tsv" else ","
        path.write_text(f"text{mark}text{mark}label\na parcel{mark}x{mark}shipping\n")
    else:
        row = '{"text": "a parcel", "text": "x", "label": "shipping"}'
        path.write_text(f"[{row}]" if kind == "json" else f"{row}\n")
    with pytest.raises(LoricaError) as caught:
        read_records(str(path), DataPlan())
    assert caught.value.code is Code.DATA_MALFORMED
    assert "'text'" in caught.value.detail


@pytest.mark.parametrize("kind", COLUMNAR)
def test_a_column_named_twice_that_nobody_asks_for_does_no_harm(kind: str, tmp_path: Path) -> None:
    arrays = [pa.array(["t", "u"]), pa.array(["a", "b"]), pa.array([1, 2]), pa.array([3, 4])]
    table = pa.Table.from_arrays(arrays, names=["text", "label", "more", "more"])
    path = tmp_path / f"d.{kind}"
    if kind == "parquet":
        pa.parquet.write_table(table, path)
    else:
        make = pa.ipc.new_file if kind == "feather" else pa.ipc.new_stream
        with make(path, table.schema) as writer:
            writer.write_table(table)
    assert list(read_records(str(path), DataPlan()).texts) == ["t", "u"]


@pytest.mark.parametrize("kind", TEXT + COLUMNAR)
def test_a_missing_label_is_refused_with_a_hint_that_helps(kind: str, tmp_path: Path) -> None:
    path, rows = tmp_path / f"d.{kind}", [{"text": "a b"}, {"text": "c d"}]
    if kind in COLUMNAR:
        columnar(rows, kind, path)
    else:
        path.write_text(as_text(rows, kind))
    with pytest.raises(LoricaError) as caught:
        read_records(str(path), DataPlan())
    assert caught.value.code is Code.DATA_COLUMN
    assert "data.label=text" not in caught.value.mend


@pytest.mark.parametrize("kind", TEXT + COLUMNAR)
def test_nothing_is_no_data(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"d.{kind}").write_bytes(b"")
    with pytest.raises(LoricaError) as caught:
        read_records(str(tmp_path / f"d.{kind}"), DataPlan())
    assert caught.value.code is Code.DATA_MALFORMED


@pytest.mark.parametrize("said", ["", "sep={}\n", '"sep={}"\n', "SEP={}\r\n"])
@pytest.mark.parametrize("mark", [";", "\t", "|", ","])
@pytest.mark.parametrize("ending", ["csv", "tsv", "txt"])
def test_tables_of_other_delimiters_are_read(
    ending: str, mark: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / f"d.{ending}"
    path.write_text(said.format(mark) + delimited(ROWS, mark), encoding="utf-8", newline="")
    expected(read(path))


def test_a_header_with_another_delimiter_in_a_name_is_told_by_the_wanted_columns(
    tmp_path: Path,
) -> None:
    (tmp_path / "d.csv").write_text("text;label;size, in cm\na, b;x;1\nc;y;2\n")
    assert read_records(str(tmp_path / "d.csv"), DataPlan()).texts == ["a, b", "c"]
    (tmp_path / "e.csv").write_text("text,label,a;b;c;d\nt;u,x,1\n")
    assert read_records(str(tmp_path / "e.csv"), DataPlan()).texts == ["t;u"]


def test_lines_of_plain_text_are_texts(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("one line, with a comma\n\nand; another\n")
    found = read_records(str(tmp_path / "d.txt"), DataPlan(label=""))
    assert found.texts == ["one line, with a comma", "and; another"]
    (tmp_path / "one.txt").write_text("a single line")
    assert read_records(str(tmp_path / "one.txt"), DataPlan(label="")).texts == ["a single line"]


@pytest.mark.parametrize(
    "content",
    [
        {"text": ["a", "b"], "label": ["x", "y"]},
        {"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}},
        {"columns": ["text", "label"], "index": [0, 1], "data": [["a", "x"], ["b", "y"]]},
        {"data": [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]},
    ],
    ids=["lists", "pandas", "pandas split", "data"],
)
def test_json_documents_of_every_shape_are_rows(content: Any, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(content))
    found = read_records(str(tmp_path / "d.json"), DataPlan())
    assert (found.texts, found.labels) == (["a", "b"], ["x", "y"])


@pytest.mark.parametrize(
    "content",
    [
        '"a text"',
        "3",
        "{}",
        '{"text": ["a"], "label": ["x", "y"]}',
        '{"columns": ["text"], "data": [["a", "b"]]}',
        '{"data": [1]}',
        '["a", "b"]',
        '[{"text": "a", "label": "x"}, {"text": "b"}]',
        '[{"text": "a", "label": "x"}',
        "not JSON",
    ],
)
def test_other_json_is_refused_with_an_example(content: str, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(LoricaError) as caught:
        read_records(str(tmp_path / "d.json"), DataPlan())
    assert caught.value.code is Code.DATA_MALFORMED


def test_lines_of_json_in_a_json_file_are_rows(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(as_text(ROWS, "jsonl"), encoding="utf-8")
    expected(read(tmp_path / "d.json"))


BODY = "a fever,x\nlost my card,y\n"
SPREADSHEETS = {
    "blank lines above the header": "\n \n\r\ntext,label\n" + BODY,
    "empty columns at the end": "text,label,,\na fever,x,,\nlost my card,y,,\n",
    "empty cells beyond the header": "text,label\na fever,x,,\nlost my card,y,\n",
    "empty rows": "text,label\n,\na fever,x\n,\n\nlost my card,y\n,,,,\n , \n",
    "blanks around names": "text , label\t\n" + BODY,
    "a no-break space behind a name": "text\xa0,label\n" + BODY,
    "two marks before the header": "\ufeff\ufefftext,label\n" + BODY,
    "all of it": '\ufeff\r\n"text ",label,,\r\n,,,\r\na fever,x,,\r\nlost my card,y,,\r\n,,,\r\n',
}


@pytest.mark.parametrize("case", SPREADSHEETS)
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_what_spreadsheets_leave_around_a_table_is_no_part_of_it(
    tmp_path: Path, case: str, mark: str
) -> None:
    path = tmp_path / "records.csv"
    path.write_text(SPREADSHEETS[case].replace(",", mark), encoding="utf-8", newline="")
    if mark == "\t" and case == "blanks around names":
        return  # there a tab is no blank
    found = read_records(str(path), DataPlan())
    assert found.texts == ["a fever", "lost my card"] and found.labels == ["x", "y"]


def test_content_in_a_column_without_a_name_is_kept_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    path.write_text(",text,label,,\n0,a fever,x,,seen\n1,lost my card,y,,\n")
    rows = list(read_table(path))
    assert list(rows[0]) == ["column 1", "text", "label", "column 4", "column 5"]
    assert rows[0]["column 5"] == "seen" and rows[1]["column 1"] == "1"


@pytest.mark.parametrize(
    ("content", "said", "mend"),
    [
        ("text,label\na,x,more\n", "line 2: 3 fields where the header has 2", "quote"),
        ("\n\ntext,label\na\n", "line 4: 1 fields", "quote"),
        ("Export of 2024\n\ntext,label\na,x\n", "line 3: 2 fields", "delete what stands above"),
        ("text,text \na,x\n", "a column name twice, 'text'", ""),
        (",,\n,,\n", "no header", ""),
        ("\n\n", "no header", ""),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_their_line(
    tmp_path: Path, content: str, said: str, mend: str
) -> None:
    path = tmp_path / "records.csv"
    path.write_text(content)
    with pytest.raises(LoricaError) as caught:
        read_records(str(path), DataPlan())
    assert caught.value.code is Code.DATA_MALFORMED
    assert said in caught.value.detail and mend in caught.value.mend


@pytest.mark.parametrize("name", ["label ", "Label", "the label", "'label'", "$label"])
def test_the_setting_that_a_refusal_names_works_as_it_is_typed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps({"text": t, name: "x"}) + "\n" for t in ("a", "b")))
    with pytest.raises(LoricaError) as caught:
        read_records(str(path), DataPlan())
    assert caught.value.code is Code.DATA_COLUMN
    option, setting = shlex.split(caught.value.mend.partition("for example ")[2])
    assert option == "--set"
    plan = load_plan(None, [setting]).data
    assert read_records(str(path), plan).labels == ["x", "x"]


def test_commas_between_json_lines_are_refused_with_a_mend_for_json(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"text": "a", "label": "x"},\n{"text": "b", "label": "y"}\n')
    with pytest.raises(LoricaError, match="line 1 is not JSON") as caught:
        read_records(str(path), DataPlan())
    assert "without commas between" in caught.value.mend


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("ids", "lost"),
    [
        ([2**53, 2**53 + 1], False),
        ([float(2**53), float(2**53 + 2)], True),
        ([1e17, 2e17], True),
        (["1.23457E+11", "1.23458E+11"], True),
        (["12E45", "1E50"], False),
        ([1000.0, 1001.0], False),
        (["9007199254740993", "9007199254740992"], False),
    ],
)
def test_ids_that_lost_digits_are_refused(
    tmp_path: Path, kind: str, ids: list[Any], lost: bool
) -> None:
    """Two people would be one, silently; whole numbers and texts of any length are as they are."""
    rows = [{"text": f"note {at}", "label": "x", "patient": each} for at, each in enumerate(ids)]
    path = tmp_path / f"records.{kind}"
    if kind == "parquet":
        columnar(rows, kind, path)
    else:
        path.write_text(as_text(rows, kind))
    if lost:
        with pytest.raises(LoricaError, match="lost digits") as caught:
            read(path)
        assert caught.value.code is Code.DATA_UNIT and "as text" in caught.value.mend
    else:
        assert len(set(read(path).units)) == 2


@pytest.mark.parametrize("form", ["bytes", "uuid"])
def test_uuids_in_parquet_are_the_ids_that_csv_has(tmp_path: Path, form: str) -> None:
    """Their bytes as text would be blanks, nothing, or no text: one unit of several people."""
    ids = [uuid.UUID(int=number) for number in (9 * 257**15, 32, 0x80 << 120, 10)]
    rows: Rows = [{"text": f"n {at}", "label": "x", "patient": str(u)} for at, u in enumerate(ids)]
    kind = pa.binary(16) if form == "bytes" else pa.uuid()
    stored = pa.array([each.bytes for each in ids], pa.binary(16)).cast(kind)
    pa.parquet.write_table(
        pa.Table.from_pylist(rows).set_column(2, "patient", stored), tmp_path / "d.parquet"
    )
    (tmp_path / "d.csv").write_text(as_text(rows, "csv"))
    found = read(tmp_path / "d.parquet").units
    assert found == read(tmp_path / "d.csv").units == [str(each) for each in ids]


def test_hashes_of_a_fixed_length_are_read_in_hex(tmp_path: Path) -> None:
    stored = pa.array([b"\x09\x0a\x20", b"\xff\xfe\x00"], pa.binary(3))
    table = pa.table({"text": ["a", "b"], "label": ["x", "y"], "patient": stored})
    pa.parquet.write_table(table, tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet").units == ["090a20", "fffe00"]


MENDED = {
    "JSON lines named .csv": ("d.csv", '{"text": "a", "label": "x"}\n', ".jsonl"),
    "CSV named .parquet": ("d.parquet", "text,label\na,x\n", ".csv"),
    "a key that is missing": (
        "d.jsonl",
        '{"text": "a", "label": "x", "patient": 1}\n{"text": "b", "label": "y"}\n',
        "null where it has no value",
    ),
    "half a character": ("d.jsonl", '{"text": "a\\ud83d", "label": "x"}\n', "Remove it"),
    "a list for a label": ("d.jsonl", '{"text": "a", "label": ["x"]}\n', "several"),
    "backslashes for quotes": ("d.csv", 'text,label\n"a \\"b\\" c",x\n', 'twice ("")'),
    "nothing": ("d.csv", "", "first line"),
    "a header alone": ("d.csv", "text,label\n", "one record a row"),
    "a name twice": ("d.csv", "text,text,label\na,b,x\n", "name of its own"),
}


@pytest.mark.parametrize("case", MENDED)
def test_the_mend_is_one_for_this_very_mistake(tmp_path: Path, case: str) -> None:
    name, content, mend = MENDED[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(LoricaError) as caught:
        read_records(str(tmp_path / name), DataPlan())
    assert mend in caught.value.mend and "codec" not in caught.value.detail


def test_the_end_of_file_of_old_programs_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(b"text,label\r\na,x\r\n\x1a")
    assert read_records(str(tmp_path / "d.csv"), DataPlan()).texts == ["a"]
