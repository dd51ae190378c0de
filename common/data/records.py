"""Labelled texts in memory, and how they are made of what connectors read.

Nothing is guessed, and nothing is skipped but rows in which nothing stands: data that are not what
the plan says are refused with the row and column at fault. These sentences name values, so they
stay at the machine that reads the file (:mod:`lorica.common.errors`).
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorica.common.data.batches import Batch, as_list
from lorica.common.data.kinds import IMAGE, PACKAGED, kind_of
from lorica.common.data.levels import Levels
from lorica.common.data.names.alike import CHOICE, Alike, Spellings
from lorica.common.data.names.normal import alike_key, forms, id_form, lost_digits
from lorica.common.data.request import CONNECTORS, DataRequest, read_batches
from lorica.common.data.table import Table
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.subject import DataPlan

if TYPE_CHECKING:
    import numpy as np

UNNAMED = "\x00"
"""How the units of records begin that name none; each such record is its own unit."""

_WITH_IMAGES = frozenset({"parquet", "arrow", "dataset", "hub"})
"""Kinds of tables that can have a column of images."""

_SHOWN = 5

__all__ = [
    "PACKAGED",
    "UNNAMED",
    "Records",
    "Roles",
    "checked",
    "collect",
    "read_records",
    "require_roles",
]


@dataclass(frozen=True)
class Records:
    """Labelled texts, one entry per record in every list."""

    texts: Sequence[str]
    """As the source has them, a list of tokens as JSON. A list, or, where they are many, a view of
    a file; ``take(rows)`` then gives another."""
    labels: list[str]
    """As the source has them: a label's name, a number, several labels, or a list as JSON. The
    plan's task reads them (:meth:`lorica.common.tasks.base.Task.check`)."""
    units: list[str]
    """Whose record it is; ``UNNAMED`` and the record's number where none is named."""
    groups: list[str]
    """Value of the column that divides sites; empty strings when none was asked for."""
    images: list[np.ndarray] | None = None
    """uint8, (H, W, 3) each; None where the source has none. Records of images without a text
    have the SHA-256 of the image as their text, so that it still tells records apart."""
    table: Table | None = None
    """Cells of the columns beside them; None where none was asked for."""
    merged: bool = False
    """Whether labels that only look alike are one: then a label is the plan's of the same
    :func:`~lorica.common.data.names.normal.alike_key`."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> Records:
        """The records of these rows, in this order."""
        return Records(
            **{part.name: _taken(getattr(self, part.name), rows) for part in fields(self)}
        )

    @property
    def label_names(self) -> list[str]:
        """The labels that occur, sorted."""
        return sorted(set(self.labels))


class Gathered:
    """Records that come in parts, on their way to be one."""

    def __init__(self, *apart: str) -> None:
        """``apart``: fields that are kept elsewhere, and given in the end."""
        apart = ("table", "merged", *apart)
        names = [part.name for part in fields(Records) if part.name not in apart]
        self._listed: dict[str, list[Any]] = {name: [] for name in names}
        self._tables: list[Table] = []
        self._merged = False

    def add(self, part: Records) -> None:
        """Take in a part."""
        self._tables += [part.table] if part.table is not None else []
        self._merged |= part.merged
        for name, cells in self._listed.items():
            cells.extend(getattr(part, name) or ())

    def records(self, **apart: Any) -> Records:
        """All of them, with the fields that were kept elsewhere."""
        listed = {name: cells for name, cells in self._listed.items() if cells or name != "images"}
        table = Table.joined(self._tables) if self._tables else None
        return Records(**listed, **apart, table=table, merged=self._merged)


@dataclass(frozen=True)
class Roles:
    """Which column means what."""

    text: str
    label: str
    unit: str = ""
    """Empty: every record is its own unit."""
    group: str = ""
    image: str = ""
    """Empty: records have no image; else the text may be missing."""
    missing_unit: str = "refuse"
    """"refuse" records without a unit, or take each as its "own"."""
    keys: tuple[str, str, str, str] = ("data.text", "data.label", "data.unit", "simulation.column")
    """What the settings that name these columns are called."""
    setting: str = "--set {key}={column}"
    """How a setting is made."""
    table: Mapping[str, str] = field(default_factory=dict)
    """Further columns: what plans call them -> what the source does."""
    table_key: str = "table.columns"
    """What the setting that names these is called."""
    alike: Alike = "refuse"
    """What is done with labels, and with sites' names, that only look alike."""
    labels_are_names: bool = True
    """Whether a label is the name of a class; else it is an answer, a number or a list, and stays
    as it is but for blanks at its ends."""
    choice: str = CHOICE
    """How :attr:`alike` is set."""

    @property
    def columns(self) -> dict[str, str]:
        """Setting -> column, of those that are wanted, without the table's."""
        names = ("" if self.image else self.text, self.label, self.unit, self.group)
        wanted = {key: name for key, name in zip(self.keys, names, strict=True) if name}
        return wanted | ({"data.image": self.image} if self.image else {})

    @property
    def wanted(self) -> list[str]:
        """All columns that are wanted."""
        return list(dict.fromkeys([*self.columns.values(), *self.table.values()]))

    def plain(self, lists: Collection[str]) -> list[str]:
        """The columns in which lists are refused, if ``lists`` of "text" and "label" may hold
        them."""
        listed = {{"text": self.text, "label": self.label}[role] for role in lists}
        return [column for column in self.wanted if column not in listed]


def read_records(
    source: str,
    plan: DataPlan,
    *,
    unit: str = "",
    group: str = "",
    test: bool = False,
    lists: Collection[str] = (),
    images: bool = False,
    table: Collection[str] = (),
    labels_are_names: bool = True,
) -> Records:
    """Labelled texts from a source that a plan names (:mod:`lorica.common.data`).

    Args:
        source: path, "embedded:NAME" or "hub:ID".
        plan: names of the columns.
        unit: name of the column that says whose record it is; empty: every record its own.
        group: name of a further column to keep, for dividing sites.
        test: of a source with parts, the test part.
        lists: which of "text" and "label" may hold lists, which are then kept as JSON
            (:attr:`lorica.common.plan.traits.Traits.lists`).
        images: whether records are images; tables then need a column of them.
        table: names of further columns to keep.
        labels_are_names: whether the label is a class's name (:attr:`Roles.labels_are_names`).

    Raises:
        LoricaError: LOR-301 not found, LOR-302 missing column, LOR-303 not UTF-8, LOR-304
            malformed, LOR-305 empty text, LOR-310 a record without a unit, LOR-312 a cell of the
            table is a text; LOR-32x; LOR-332 labels or sites that only look alike.
    """
    kind = kind_of(source, Path())
    image = IMAGE if kind == "images" else ""
    if kind in _WITH_IMAGES:
        image = plan.image or (IMAGE if images else "")
    names = {name: name for name in table}
    roles = Roles(
        plan.text,
        plan.label,
        unit,
        group,
        image,
        plan.missing_unit,
        table=names,
        alike=plan.alike,
        labels_are_names=labels_are_names and "label" not in lists,
    )
    request = DataRequest(
        source,
        kind,
        Path(),
        columns=None if image else roles.wanted,
        plain=roles.plain(lists),
        test=test,
        table=plan.table if image else "",
        file=plan.file,
        text=plan.text,
        label=plan.label,
        image=image,
        levels=Levels(plan.window),
    )
    if request.kind not in CONNECTORS:
        raise LoricaError(
            Code.DATA_KIND,
            f"A plan cannot name a source of the kind '{request.kind}'; only a site's own "
            "configuration can.",
        )
    return collect(checked(read_batches(request), roles, source), source)


def collect(parts: Iterable[Records], where: str) -> Records:
    """All parts as one. Raises LoricaError LOR-304 when there is no record; ``where`` begins it."""
    gathered = Gathered()
    for part in parts:
        gathered.add(part)
    found = gathered.records()
    if not len(found):
        raise LoricaError(
            Code.DATA_MALFORMED,
            f"{where} has no records.",
            mend="Give a source with one record a row, below a header with the columns' names.",
        )
    return found


def checked(found: Iterable[Batch], roles: Roles, where: str) -> Iterator[Records]:
    """Batches as records, each of them checked.

    Args:
        found: batches with the roles' columns, and perhaps more.
        roles: the columns.
        where: begins the messages: the source's name, without credentials.

    Raises:
        LoricaError: LOR-302, LOR-304 an empty label, LOR-305, LOR-310, LOR-312, LOR-332.
    """
    before = 0
    labels = Spellings(roles.alike, where, roles.label, roles.choice)
    groups = Spellings(roles.alike, where, roles.group, roles.choice)
    for batch in found:
        require_roles(batch, roles, where)
        part = _checked(batch, roles, where, before, labels, groups)
        before += len(part)
        yield part


def require_roles(batch: Batch, roles: Roles, where: str) -> None:
    """Return if the batch has all of the roles' columns. Raises LOR-302."""
    for key, column in roles.columns.items():
        if column not in batch:
            raise LoricaError(
                Code.DATA_COLUMN,
                f"{where} has no column '{column}' ({key}); its columns are: {', '.join(batch)}.",
                mend=_mend_of_column(key, batch, roles),
            )
    for name, column in roles.table.items():
        if column not in batch:
            raise LoricaError(
                Code.DATA_COLUMN,
                f"{where} has no column '{column}' ({roles.table_key}"
                f"{'' if name == column else f', for {name!r}'}); its columns are: "
                f"{', '.join(batch)}.",
                mend=f"Correct {roles.table_key}, or the source.",
            )


def _mend_of_column(key: str, batch: Batch, roles: Roles) -> str:
    taken = set(roles.columns.values())
    asked = alike_key(roles.columns[key])
    free = [name for name in batch if name not in taken and name.isprintable()]
    if not free:
        return (
            "Give the data such a column: a header with the columns' names, one record a row "
            "(docs/data.md)."
        )
    column = next((name for name in free if alike_key(name) == asked), free[0])
    return f"Set it to one of these, for example {_setting(key, column, roles.setting)}"


def _setting(key: str, column: str, setting: str) -> str:
    """The setting as it can be typed: in a shell, names with blanks need quotes."""
    command, _, form = setting.rpartition("--set ")
    if not setting.startswith("--set "):
        return setting.format(key=key, column=column)
    quoted = column[:1] + column[-1:] in ("''", '""')
    named = f'"{column}"' if quoted or column != column.strip() else column
    return f"{command}--set {shlex.quote(form.format(key=key, column=named))}"


def _checked(
    batch: Batch,
    roles: Roles,
    where: str,
    before: int,
    labels_seen: Spellings,
    groups_seen: Spellings,
) -> Records:
    images = as_list(batch[roles.image]) if roles.image else None
    if images is not None and roles.text not in batch:
        texts = [hashlib.sha256(str(im.shape).encode() + im.tobytes()).hexdigest() for im in images]
    else:
        texts = as_list(batch[roles.text])
    labels = as_list(batch[roles.label]) if roles.label else [""] * len(texts)
    _refuse_empty(where, texts, before, roles.text, Code.DATA_EMPTY_TEXT, "text")
    if roles.label:
        _refuse_empty(where, labels, before, roles.label, Code.DATA_MALFORMED, "label")
    own = [f"{UNNAMED}{before + number}" for number in range(1, len(texts) + 1)]
    if roles.unit:
        given = as_list(batch[roles.unit])
        _refuse_rounded(where, given, before, roles.unit)
        named = forms(given, id_form)
        if roles.missing_unit == "refuse":
            _refuse_empty(where, named, before, roles.unit, Code.DATA_UNIT, "unit")
        own = [name or other for name, other in zip(named, own, strict=True)]
    groups = [""] * len(texts)
    if roles.group:
        groups = groups_seen.of(as_list(batch[roles.group]), before)
    if roles.label and roles.labels_are_names:
        labels = labels_seen.of(labels, before)
    else:
        labels = [label.strip() for label in labels]
    names = list(map(sys.intern, labels))
    cells = {name: as_list(batch[column]) for name, column in roles.table.items()}
    table = Table.of(cells, where, before=before) if cells else None
    return Records(texts, names, own, groups, images, table, roles.alike == "merge")


def _taken(column: Any, rows: Sequence[int]) -> Any:
    if column is None or isinstance(column, bool):
        return column
    if isinstance(column, list):
        return [column[row] for row in rows]
    return column.take(rows)


def _refuse_rounded(where: str, cells: list[str], before: int, column: str) -> None:
    row = next((row for row, cell in enumerate(cells) if lost_digits(cell)), None)
    if row is not None:
        raise LoricaError(
            Code.DATA_UNIT,
            f"{where}: the unit (column '{column}') in record {before + row + 1} is "
            f"{cells[row].strip()}, a number that lost digits: several people's ids become one.",
            mend="Write the column anew as whole numbers or as text; in a spreadsheet format it "
            "as text before it is saved as CSV.",
        )


def _refuse_empty(
    where: str, cells: list[str], before: int, column: str, code: Code, what: str
) -> None:
    empty = list(islice((i for i, cell in enumerate(cells) if not cell.strip()), _SHOWN))
    if empty:
        numbers = ", ".join(str(before + row + 1) for row in empty)
        raise LoricaError(
            code,
            f"{where}: the {what} (column '{column}') is empty in record"
            f"{'s' if len(empty) > 1 else ''} {numbers}"
            f"{' and perhaps more' if len(empty) == _SHOWN else ''}.",
        )
