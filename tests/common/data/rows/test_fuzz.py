"""Any table that pandas and polars read alike gives the same records here, or a coded refusal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorica.common.data.records import read_records
from lorica.common.errors import LoricaError
from lorica.common.plan.subject import DataPlan

pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")

PLAN = DataPlan(alike="keep")
PIECES = ["a", "B", "é", "1", "1.0", ".", ",", ";", "|", "\t", " ", '"', '""', "\n", "\r", "\r\n"]
PIECES += ["'", "\\", "#", "{", "[", ":", "null", "NaN", "true", "\u00a0", "\u200b", "\ufeff", "😀"]

cells = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
lines = st.lists(st.tuples(cells, cells), min_size=1, max_size=4)
documents = st.lists(st.sampled_from([*PIECES, "text", "label", "x", "\n", ","]), max_size=30)
filled = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map(lambda p: f"a{''.join(p)}")
raw = st.lists(st.tuples(filled, filled).map(",".join), max_size=4).map("\n".join)
slow = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def here(path: Path) -> list[tuple[str, str]] | None:
    """Texts and labels as they are read here, None for a refusal; any other error fails."""
    try:
        found = read_records(str(path), PLAN, labels_are_names=False)
    except LoricaError as error:
        assert error.mend
        return None
    return list(zip(found.texts, found.labels, strict=True))


def by_others(content: bytes, kind: str) -> list[tuple[str, str]] | None:
    """As pandas and polars read them, where they agree; None where not, or where one refuses."""
    try:
        if kind == "csv":
            first = pandas.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
            second = polars.read_csv(io.BytesIO(content), infer_schema=False).fill_null("")
        elif kind == "jsonl":
            first = pandas.read_json(io.BytesIO(content), lines=True, dtype=False)
            second = polars.read_ndjson(io.BytesIO(content))
        else:
            first = pandas.read_parquet(io.BytesIO(content))
            second = polars.read_parquet(io.BytesIO(content))
        one = rows(first.to_dict(orient="records"))
        other = rows(second.to_dicts())
    except Exception:  # noqa: BLE001 - whatever they refuse with
        return None
    return one if one == other else None


def rows(found: list[dict[str, Any]]) -> list[tuple[str, str]] | None:
    """Text and label of every row but those in which nothing stands, which are none here; None
    where there are none, or no texts."""
    filled = [row for row in found if any(str(cell).strip() for cell in row.values())]
    listed = [(row.get("text"), row.get("label")) for row in filled]
    if not all(isinstance(cell, str) for row in listed for cell in row):
        return None
    return [(text, label.strip()) for text, label in listed]


def agree(content: bytes, kind: str, folder: Path) -> None:
    (folder / f"d.{kind}").write_bytes(content)
    found, expected = here(folder / f"d.{kind}"), by_others(content, kind)
    if found is not None and expected is not None:
        assert found == expected


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_others_agree_on_ordinary_tables(kind: str, tmp_path: Path) -> None:
    """Else no test below could fail."""
    found = [("a, b", "x"), ('say "c"', "y"), ("two\nlines", "é")]
    table = polars.DataFrame(found, schema=["text", "label"], orient="row")
    write = {"csv": table.write_csv, "jsonl": table.write_ndjson, "parquet": table.write_parquet}
    write[kind](tmp_path / "d")
    assert by_others((tmp_path / "d").read_bytes(), kind) == found


@slow
@given(raw | documents.map("".join))
def test_any_csv_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    agree(f"text,label\n{text}".encode(), "csv", tmp_path_factory.getbasetemp())


@slow
@given(documents.map("".join))
def test_any_header(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    agree(f"{text}\na,b\nc,d\n".encode(), "csv", tmp_path_factory.getbasetemp())


@slow
@given(lines)
def test_any_rows_that_pandas_writes_as_csv(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, str]]
) -> None:
    content = pandas.DataFrame(found, columns=["text", "label"]).to_csv(index=False).encode()
    agree(content, "csv", tmp_path_factory.getbasetemp())


@slow
@given(lines)
def test_rows_with_texts_and_labels_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, str]]
) -> None:
    """Not only no other records: these."""
    folder = tmp_path_factory.getbasetemp()
    if not all(text.strip() and label.strip() for text, label in found):
        return
    expected = [(text, label.strip()) for text, label in found]
    table = polars.DataFrame(found, schema=["text", "label"], orient="row")
    table.write_parquet(folder / "d.parquet")
    table.write_ndjson(folder / "d.jsonl")
    table.write_csv(folder / "d.csv")
    for kind in ("parquet", "jsonl", "csv"):
        assert here(folder / f"d.{kind}") == expected, kind


@slow
@given(st.lists(st.one_of(documents.map("".join), cells.map(json.dumps)), max_size=4))
def test_any_json_lines(tmp_path_factory: pytest.TempPathFactory, found: list[str]) -> None:
    first = '{"text": "a", "label": "b"}\n'
    body = "\n".join(f'{{"text": {cell}, "label": "x"}}' for cell in found)
    agree((first + body).encode(), "jsonl", tmp_path_factory.getbasetemp())


@slow
@given(st.binary(max_size=200), st.sampled_from(["csv", "jsonl", "parquet", "json", "txt"]))
def test_any_bytes_are_records_or_a_coded_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"d.{kind}"
    for begin in (b"", b"text,label\n", b'{"text": "a", "label": "b"}\n'):
        path.write_bytes(begin + content)
        here(path)
