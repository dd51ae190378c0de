"""Tables of labelled texts: what is read, and what is refused naming the place at fault."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.data.names.plan_labels import label_indices
from lorica.common.data.records import Records, read_records
from lorica.common.data.tables import read_table
from lorica.common.errors import Code
from lorica.common.plan.subject import DEMO_DATA, DataPlan

Refuses = Callable[[Code, Callable[[], object]], str]
Write = Callable[[str, str | bytes], str]

TEXTS = ["plain", 'with "quotes", commas', "line\nbreak", "naïve 日本 😀", " spaces "]
LABELS = ["a", "b", "a", "b", "c"]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(name, content)``: the path of a new file with this content, byte for byte."""

    def make(name: str, content: str | bytes) -> str:
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return make


def as_table(suffix: str, texts: list[str], labels: list[str]) -> str:
    if suffix == ".jsonl":
        rows = zip(texts, labels, strict=True)
        return "".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows)
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t" if suffix == ".tsv" else ",")
    writer.writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return buffer.getvalue()


@pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["plain", "BOM"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".CSV", ".TSV", ".JSONL"])
def test_every_format_gives_the_records_that_were_written(
    suffix: str, bom: str, write: Write
) -> None:
    content = bom + as_table(suffix.lower(), TEXTS, LABELS)
    records = read_records(write(f"data{suffix}", content), DataPlan())
    assert (records.texts, records.labels) == (TEXTS, LABELS)
    assert len(set(records.units)) == 5  # each its own
    assert records.groups == [""] * 5
    assert records.label_names == ["a", "b", "c"]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(texts.filter(lambda text: bool(text.strip())), min_size=1, max_size=6))
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_any_text_survives(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    labels = ["a"] * len(rows)
    path.write_text(as_table(suffix, rows, labels), encoding="utf-8", newline="")
    assert read_records(str(path), DataPlan()).texts == rows


def test_columns_are_those_that_the_plan_names(write: Write) -> None:
    path = write("d.csv", "id,note,dept,hospital\np1,cough,lungs,north\np1,rash,skin,south\n")
    plan = DataPlan(text="note", label="dept")
    records = read_records(path, plan, unit="id", group="hospital")
    assert records == Records(
        ["cough", "rash"], ["lungs", "skin"], ["p1", "p1"], ["north", "south"]
    )


@pytest.mark.parametrize("key", ["text", "label", "unit"])
def test_a_missing_column_is_refused_with_the_columns_there_are(
    key: str, write: Write, refuses: Refuses
) -> None:
    path = write("d.csv", "text,label,id\na,b,c\n")
    plan = DataPlan().model_copy(update={key: "absent"})
    unit = "absent" if key == "unit" else "id"
    detail = refuses(Code.DATA_COLUMN, lambda: read_records(path, plan, unit=unit))
    assert "'absent'" in detail and f"data.{key}" in detail and "text, label, id" in detail


def test_a_missing_column_that_divides_sites_is_refused(write: Write, refuses: Refuses) -> None:
    path = write("d.csv", "text,label\na,b\n")
    detail = refuses(Code.DATA_COLUMN, lambda: read_records(path, DataPlan(), group="hospital"))
    assert "simulation.column" in detail


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_bytes_that_are_not_utf8_are_refused(suffix: str, write: Write, refuses: Refuses) -> None:
    content = as_table(f".{suffix}", ["ok"] * 5000, ["a"] * 5000).encode() + "Prüfung".encode(
        "latin-1"
    )
    path = write(f"d.{suffix}", content)
    detail = refuses(Code.DATA_ENCODING, lambda: read_records(path, DataPlan()))
    assert "0xfc" in detail and path in detail


MALFORMED = {
    "too few fields": ("d.csv", 'text,label\n"two\nlines",b\nonly\n', "line 4"),
    "too many fields": ("d.csv", "text,label\na,b\na,b,c\n", "line 3"),
    "unclosed quote": ("d.csv", 'text,label\na,b\n"c,d\n', "line 3"),
    "text after a quote": ("d.csv", 'text,label\n"a"b,c\n', "line 2"),
    "an endless field": ("d.csv", f'text,label\n"{"x" * 10_000_001}",b\n', "line 2"),
    "empty file": ("d.csv", "", "no header"),
    "blank lines alone": ("d.csv", "\n \n\n", "no header"),
    "header only": ("d.csv", "text,label\n", "no records"),
    "header twice": ("d.csv", "text,text\na,b\n", "twice"),
    "empty jsonl": ("d.jsonl", "", "no records"),
    "no json": ("d.jsonl", '{"text": "a", "label": "b"}\n{"text": \n', "line 2"),
    "no object": ("d.jsonl", '{"text": "a", "label": "b"}\n\n["a", "b"]\n', "line 3"),
    "other keys": ("d.jsonl", '{"text": "a", "label": "b"}\n{"text": "a"}\n', "line 2"),
    "a list as text": ("d.jsonl", '{"text": ["a"], "label": "b"}\n', "line 1"),
    "an object as label": ("d.jsonl", '{"text": "a", "label": {}}\n', "line 1"),
    "no unicode": ("d.jsonl", '{"text": "\\ud800", "label": "b"}\n', "line 1"),
    "deep nesting": ("d.jsonl", "[" * 100_000 + "\n", "line 1"),
    "an empty label": ("d.csv", "text,label\na,b\nc, \n", "record 2"),
}


@pytest.mark.parametrize(("name", "content", "said"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_table_is_refused_naming_the_place(
    name: str, content: str, said: str, write: Write, refuses: Refuses
) -> None:
    path = write(name, content)
    detail = refuses(Code.DATA_MALFORMED, lambda: read_records(path, DataPlan()))
    assert path in detail and said in detail


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", 'text,label\na,x\n"",x\nb,x\n \t,x\n'),
        (
            "d.jsonl",
            '{"text":"a","label":1}\n{"text":"","label":1}\n{"text":"b","label":1}\n'
            '{"text":" ","label":1}\n',
        ),
        (
            "null.jsonl",
            '{"text":"a","label":1}\n{"text":null,"label":1}\n{"text":"b","label":1}\n'
            '{"text":null,"label":1}\n',
        ),
    ],
)
def test_empty_texts_are_refused_naming_their_records(
    name: str, content: str, write: Write, refuses: Refuses
) -> None:
    path = write(name, content)
    detail = refuses(Code.DATA_EMPTY_TEXT, lambda: read_records(path, DataPlan()))
    assert "records 2, 4" in detail and "'text'" in detail


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_records_without_a_unit_are_refused_or_their_own_as_the_plan_says(
    suffix: str, write: Write, refuses: Refuses
) -> None:
    content = "text,label,id\na,x,p1\nb,x, \nc,x,p1 \nd,x,\n"
    if suffix == "jsonl":
        ids = ["p1", " ", "p1 ", None]
        rows = [{"text": "t", "label": "x", "id": unit} for unit in ids]
        content = "".join(json.dumps(row) + "\n" for row in rows)
    path = write(f"d.{suffix}", content)
    detail = refuses(Code.DATA_UNIT, lambda: read_records(path, DataPlan(), unit="id"))
    assert "records 2, 4" in detail and "'id'" in detail
    units = read_records(path, DataPlan(missing_unit="own"), unit="id").units
    assert units[0] == units[2] == "p1"
    assert len(set(units)) == 3


def test_only_the_first_few_empty_records_are_named(write: Write, refuses: Refuses) -> None:
    path = write("d.csv", "text,label\n" + " ,x\n" * 100)
    detail = refuses(Code.DATA_EMPTY_TEXT, lambda: read_records(path, DataPlan()))
    assert "1, 2, 3, 4, 5 and perhaps more" in detail


def test_blank_lines_between_rows_are_no_records(write: Write) -> None:
    assert len(read_records(write("d.csv", "text,label\n\na,b\n\n\nc,d\n\n"), DataPlan())) == 2
    rows = '\n{"text":"a","label":"b"}\n  \n{"text":"c","label":"d"}\n\n'
    assert len(read_records(write("d.jsonl", rows), DataPlan())) == 2


def test_nested_json_in_columns_that_nobody_asked_for_does_no_harm(write: Write) -> None:
    path = write("d.jsonl", '{"text": "a", "label": "b", "more": {"x": [1]}}\n')
    assert read_records(path, DataPlan()).texts == ["a"]
    (row,) = read_table(Path(path))
    assert json.loads(row["more"]) == {"x": [1]}


def test_the_order_of_json_keys_does_not_matter(write: Write) -> None:
    path = write("d.jsonl", '{"text":"a","label":"x"}\n{"label":"y","text":"b"}\n')
    records = read_records(path, DataPlan())
    assert (records.texts, records.labels) == (["a", "b"], ["x", "y"])


def test_json_numbers_become_their_text(write: Write) -> None:
    records = read_records(write("d.jsonl", '{"text": 12, "label": 3}\n'), DataPlan())
    assert (records.texts, records.labels) == (["12"], ["3"])


def test_labels_lose_the_white_space_around_them(write: Write) -> None:
    assert read_records(write("d.csv", "text,label\na, x \nb,x\n"), DataPlan()).label_names == ["x"]


@pytest.mark.parametrize("source", ["none.csv", "", "a\0b.csv", "~nosuchuser/d.csv", "x" * 5000])
def test_a_path_without_a_file_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.chdir(tmp_path)
    refuses(Code.DATA_NOT_FOUND, lambda: read_records(source, DataPlan()))


def test_a_folder_without_data_is_refused_by_name(tmp_path: Path, refuses: Refuses) -> None:
    detail = refuses(Code.DATA_KIND, lambda: read_records(str(tmp_path), DataPlan()))
    assert str(tmp_path) in detail and "directory" in detail.lower()


def test_the_packaged_data_set_has_a_training_and_a_test_part() -> None:
    columns = {"unit": "patient_id", "group": "hospital"}
    train = read_records(DEMO_DATA, DataPlan(), **columns)
    test = read_records(DEMO_DATA, DataPlan(), test=True, **columns)
    assert len(train) > 3 * len(test) > 300
    assert train.label_names == test.label_names
    assert len(set(train.groups)) == len(set(test.groups)) == 4
    assert not set(train.units) & set(test.units)


@pytest.mark.parametrize("name", ["", "nonesuch", "Clinic-Notes"])
def test_an_unknown_packaged_name_is_refused_with_those_there_are(
    name: str, refuses: Refuses
) -> None:
    detail = refuses(Code.DATA_NOT_FOUND, lambda: read_records(f"embedded:{name}", DataPlan()))
    assert "clinic-notes" in detail


def test_take_gives_rows_in_the_order_asked_for() -> None:
    records = Records(["t0", "t1", "t2"], ["l0", "l1", "l2"], ["u0", "u1", "u2"], ["", "g", ""])
    taken = records.take([2, 0, 2])
    assert taken == Records(
        ["t2", "t0", "t2"], ["l2", "l0", "l2"], ["u2", "u0", "u2"], ["", "", ""]
    )
    assert len(records.take([])) == 0
    assert records.texts == ["t0", "t1", "t2"]


def test_label_indices_are_positions_in_the_plans_list(refuses: Refuses) -> None:
    records = Records(list("wxyz"), ["b", "a", "b", "c"], list("0123"), [""] * 4)
    assert label_indices(records, ["c", "b", "a"], where="x") == [1, 2, 1, 0]
    detail = refuses(
        Code.DATA_UNKNOWN_LABEL, lambda: label_indices(records, ["a", "b"], where="test.csv")
    )
    assert "test.csv" in detail and "'c'" in detail and "record 4" in detail


def test_a_table_is_read_row_by_row(write: Write) -> None:
    path = write("d.csv", "text,label\na,b\n" + "c,d\n" * 100_000 + "ragged\n")
    assert next(read_table(Path(path))) == {"text": "a", "label": "b"}
