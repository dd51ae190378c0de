"""Read labelled texts from a table: CSV, TSV or JSONL, or a packaged data set.

Nothing is guessed and nothing is skipped: a table that is not what the plan says is refused
with the row and column at fault. These sentences name values, so they stay at the machine that
reads the file (:mod:`lorica.common.errors`).
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path

from lorica.common.errors import Code, LoricaError
from lorica.common.plan_subject import DataPlan

Row = dict[str, str]

PACKAGED = "embedded:"
"""Prefix of a packaged data set's name; entry points of the group "lorica.datasets"."""

UNNAMED = "\x00"
"""How the units of records begin that name none; each such record is its own unit."""

_FIELD_LIMIT = 10_000_000  # characters of one CSV field
_SHOWN = 5


@dataclass(frozen=True)
class Records:
    """Labelled texts, one entry per record in every list."""

    texts: list[str]
    labels: list[str]
    units: list[str]
    """Whose record it is; ``UNNAMED`` and the record's number where none is named."""
    groups: list[str]
    """Value of the column that divides sites; empty strings when none was asked for."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> Records:
        """The records of these rows, in this order."""
        return Records(
            *([column[row] for row in rows] for column in self._columns()),
        )

    def _columns(self) -> tuple[list[str], list[str], list[str], list[str]]:
        return self.texts, self.labels, self.units, self.groups

    @property
    def label_names(self) -> list[str]:
        """The labels that occur, sorted."""
        return sorted(set(self.labels))


def read_records(
    source: str, plan: DataPlan, *, unit: str = "", group: str = "", test: bool = False
) -> Records:
    """Labelled texts from a file or a packaged data set.

    Args:
        source: path, or "embedded:NAME".
        plan: names of the columns.
        unit: name of the column that says whose record it is; empty: every record its own.
        group: name of a further column to keep, for dividing sites.
        test: of a packaged data set, the test part.

    Raises:
        LoricaError: LOR-301 not found, LOR-302 missing column, LOR-303 not UTF-8, LOR-304
            malformed, LOR-305 empty text, LOR-310 a record without a unit.
    """
    wanted = {"data.text": plan.text, "data.label": plan.label}
    wanted |= {"data.unit": unit} if unit else {}
    wanted |= {"simulation.column": group} if group else {}
    if source.startswith(PACKAGED):
        rows = _packaged(source.removeprefix(PACKAGED), test=test)
    else:
        path = Path(os.path.expanduser(source))  # noqa: PTH111 - Path.expanduser raises for "~nobody"
        rows = list(read_table(path, plain=wanted.values()))
    if not rows:
        raise LoricaError(Code.DATA_MALFORMED, f"{source} has no records.")
    for key, column in wanted.items():
        if column not in rows[0]:
            raise LoricaError(
                Code.DATA_COLUMN,
                f"{source} has no column '{column}' ({key}); its columns are: "
                f"{', '.join(rows[0])}.",
                mend=f"Set it to one of these, for example --set {key}={next(iter(rows[0]))}",
            )
    _refuse_empty(source, rows, plan.text, Code.DATA_EMPTY_TEXT, "text")
    _refuse_empty(source, rows, plan.label, Code.DATA_MALFORMED, "label")
    return Records(
        texts=[row[plan.text] for row in rows],
        labels=[row[plan.label].strip() for row in rows],
        units=_units(source, rows, unit, plan.missing_unit),
        groups=[row[group] if group else "" for row in rows],
    )


def label_indices(records: Records, labels: Sequence[str], *, where: str) -> list[int]:
    """The position of every record's label in ``labels``.

    Raises:
        LoricaError: LOR-306 for a label that is not in the list.
    """
    position = {label: index for index, label in enumerate(labels)}
    unknown = sorted(set(records.labels) - set(position))
    if unknown:
        row = next(i for i, label in enumerate(records.labels) if label == unknown[0])
        raise LoricaError(
            Code.DATA_UNKNOWN_LABEL,
            f"{where}: {len(unknown)} label(s) are not in the plan's task.labels: "
            f"{', '.join(map(repr, unknown[:_SHOWN]))}; the first is in record {row + 1}.",
        )
    return [position[label] for label in records.labels]


def read_table(path: Path, *, plain: Collection[str] = ()) -> Iterator[Row]:
    """Rows of a .csv, .tsv or .jsonl file as dictionaries of text; every row whole.

    Of JSON, null becomes empty text, and whatever else is no text its JSON.

    Args:
        path: the file; its ending, in either case, says the format.
        plain: columns in which lists and objects are refused.

    Raises:
        LoricaError: LOR-301, LOR-303, LOR-304.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                yield from _json_rows(file, path, plain)
            else:
                yield from _csv_rows(file, path)
    except UnicodeDecodeError as error:
        raise LoricaError(
            Code.DATA_ENCODING,
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} cannot be decoded.",
        ) from None
    except (FileNotFoundError, ValueError):  # ValueError: no name a file can have
        raise LoricaError(Code.DATA_NOT_FOUND, f"There is no file {path}.") from None
    except OSError as error:
        raise LoricaError(
            Code.DATA_NOT_FOUND, f"{path} cannot be read: {error.strerror}."
        ) from error


def _csv_rows(file: Iterator[str], path: Path) -> Iterator[Row]:
    csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    try:
        header = next(reader, None)
        if not header or len(set(header)) != len(header):
            what = "a column name twice" if header else "no header"
            raise LoricaError(Code.DATA_MALFORMED, f"{path} has {what}.")
        for fields in reader:
            if not fields:
                continue  # a blank line
            if len(fields) != len(header):
                raise LoricaError(
                    Code.DATA_MALFORMED,
                    f"{path}, line {reader.line_num}: {len(fields)} fields where the header has "
                    f"{len(header)}.",
                )
            yield dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise LoricaError(
            Code.DATA_MALFORMED, f"{path}, line {reader.line_num}: {error}."
        ) from None


def _json_rows(file: Iterator[str], path: Path, plain: Collection[str]) -> Iterator[Row]:
    columns: list[str] = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LoricaError(
                Code.DATA_MALFORMED, f"{path}, line {number} is not JSON: {error}."
            ) from None
        if not isinstance(content, dict) or (columns and content.keys() != set(columns)):
            raise LoricaError(
                Code.DATA_MALFORMED,
                f"{path}, line {number}: expected an object with the "
                f"{'same keys as before: ' + ', '.join(columns) if columns else 'columns as keys'}"
                ".",
            )
        columns = columns or list(content)
        try:
            row = {key: _json_text(content[key], plain=key in plain) for key in columns}
            "".join([*row, *row.values()]).encode()
        except ValueError as error:
            raise LoricaError(Code.DATA_MALFORMED, f"{path}, line {number}: {error}.") from None
        yield row


def _json_text(value: object, *, plain: bool) -> str:
    if plain and isinstance(value, list | dict):
        raise ValueError("a list or an object stands where a text or a number is expected")
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _packaged(name: str, *, test: bool) -> list[Row]:
    known = {point.name: point for point in entry_points(group="lorica.datasets")}
    if name not in known:
        raise LoricaError(
            Code.DATA_NOT_FOUND,
            f"There is no packaged data set '{name}'; there is: {', '.join(sorted(known))}.",
        )
    train_rows, test_rows = known[name].load()()
    return list(test_rows if test else train_rows)


def _units(source: str, rows: list[Row], column: str, missing: str) -> list[str]:
    if column and missing == "refuse":
        _refuse_empty(source, rows, column, Code.DATA_UNIT, "unit")
    own = (f"{UNNAMED}{number}" for number in range(1, len(rows) + 1))
    return [
        row[column].strip() or name if column else name for row, name in zip(rows, own, strict=True)
    ]


def _refuse_empty(source: str, rows: list[Row], column: str, code: Code, what: str) -> None:
    empty = list(islice((i + 1 for i, row in enumerate(rows) if not row[column].strip()), _SHOWN))
    if empty:
        raise LoricaError(
            code,
            f"{source}: the {what} (column '{column}') is empty in record"
            f"{'s' if len(empty) > 1 else ''} {', '.join(map(str, empty))}"
            f"{' and perhaps more' if len(empty) == _SHOWN else ''}.",
        )
