"""A private overview of a site's data, from one pass over the source, a batch in memory.

Everything in it is computed from the records without noise: it is for the eyes of the people who
may see the records themselves. Nothing here opens a connection but to the source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lorica.client.data.check.spellings import IdsAlike, IdSpellings
from lorica.client.data.check.suspects import (
    Columns,
    Damage,
    LabelNames,
    Patterns,
    SameTextOtherLabel,
    Suspect,
)
from lorica.client.data.check.table_figures import ColumnFigures, TableFigures
from lorica.client.data.check.tallies import Groups, KeyTally, Lengths, hashed, mixed_hash
from lorica.common.data.batches import Batch, as_arrow
from lorica.common.data.names.alike import groups_alike
from lorica.common.data.names.normal import BLANKS, forms, id_form
from lorica.common.data.records import Roles, require_roles
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    import pyarrow as pa

NOTICE = "PRIVATE: exact figures of the records, without noise. This must not leave the house."
"""First line of every overview."""

CROWDS = (1, 4, 16, 100)
"""Numbers of records; units with more are counted."""

_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
_MOST_LABELS = 10_000
_TOKENIZED = 5_000  # texts, spread over the batches

Tokenize = Callable[[list[str]], list[int]]
"""Texts -> their lengths in tokens."""


@dataclass
class Overview:
    """What the check found."""

    source: str
    records: int = 0
    columns: list[str] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    """Column -> records in which it is empty."""
    labels: dict[str, int] = field(default_factory=dict)
    """Label -> records, most frequent first; of at most 10,000 labels."""
    alike: list[dict[str, int]] = field(default_factory=list)
    """Spelling -> records, of every group of labels that only look alike."""
    ids_alike: IdsAlike | None = None
    """Of units: ids that are one in normal form, and those that only look alike."""
    characters: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    """Of a sample; empty without a tokenizer."""
    images: dict[str, int] = field(default_factory=dict)
    duplicates: Groups | None = None
    """Records equal in text and label."""
    duplicates_in_units: Groups | None = None
    """Those of one unit, equal in text and label."""
    units: Groups | None = None
    dates: dict[str, tuple[str, str]] = field(default_factory=dict)
    table: dict[str, ColumnFigures] = field(default_factory=dict)
    """Of the columns of data.columns, by the plan's name."""
    suspects: list[Suspect] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON; the notice comes first."""
        return {"notice": NOTICE, **asdict(self)}


def overview(
    batches: Iterable[Batch],
    roles: Roles,
    where: str,
    *,
    tokenize: Tokenize | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Overview:
    """Look at every record once.

    Args:
        batches: all columns of the source.
        roles: which of them mean what.
        where: the source's name.
        tokenize: gives lengths in tokens; None: none are shown.
        progress: called with the number of rows so far.

    Raises:
        LoricaError: LOR-207 without pyarrow, LOR-302, LOR-304 no records; as of the source.
    """
    looking = _Looking(Overview(where), roles, tokenize)
    for batch in batches:
        looking.at(batch)
        progress(looking.found.records)
    if not looking.found.records:
        raise LoricaError(Code.DATA_MALFORMED, f"{where} has no records.")
    return looking.end()


class _Looking:
    def __init__(self, found: Overview, roles: Roles, tokenize: Tokenize | None) -> None:
        self.found = found
        self._roles = roles
        self._tokenize = tokenize
        self._labels: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        self._characters, self._tokens = Lengths(), Lengths()
        self._tokenized = 0
        self._equal, self._equal_in_unit, self._units = KeyTally(), KeyTally(), KeyTally()
        self._names, self._patterns = LabelNames(), Patterns()
        self._same, self._columns = SameTextOtherLabel(), Columns()
        self._table = TableFigures(roles.table)
        self._ids, self._damage = IdSpellings(), Damage()
        self._dates: dict[str, tuple[str, str] | None] = {}
        self._side: list[tuple[int, int]] = []

    def at(self, batch: Batch) -> None:
        """Count one batch."""
        import pyarrow.compute as pc

        require_roles(batch, self._roles, self.found.source)
        image = self._roles.image
        pictures = bool(image) and self._roles.text not in batch
        if image:
            sizes = [picture.shape[:2] for picture in batch[image]]
            self._side += [(min(size), max(size)) for size in sizes]
            batch = {name: cells for name, cells in batch.items() if name != image}
            batch.setdefault(self._roles.text, [""] * len(sizes))
        arrays = {name: as_arrow(cells) for name, cells in batch.items()}
        self._table.add(arrays)
        texts = arrays[self._roles.text]
        labels = pc.utf8_trim(arrays[self._roles.label], BLANKS)
        self.found.columns = [
            name for name in arrays if not (pictures and name == self._roles.text)
        ]
        self.found.records += len(texts)
        for name in self.found.columns:
            blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(arrays[name])), 0)
            self._missing[name] += pc.sum(blank).as_py() or 0
        counted = pc.value_counts(labels)
        names = counted.field(0).to_pylist()
        if len(self._labels) <= _MOST_LABELS:
            self._labels.update(dict(zip(names, counted.field(1).to_pylist(), strict=True)))
        label_hashes = hashed(labels.to_pylist())
        if not pictures:
            self._text(texts, labels, names, label_hashes, arrays)
        others = {
            name: array
            for name, array in arrays.items()
            if name not in (self._roles.text, self._roles.label)
        }
        self._columns.add(labels, others)
        for name, array in others.items():
            self._date(name, array)

    def _text(
        self,
        texts: pa.Array,
        labels: pa.Array,
        names: list[str],
        label_hashes: np.ndarray,
        arrays: dict[str, Any],
    ) -> None:
        import pyarrow.compute as pc

        self._characters.add(pc.utf8_length(texts).to_numpy(zero_copy_only=False))
        listed = texts.to_pylist()
        if self._tokenize is not None and self._tokenized < _TOKENIZED:
            some = listed[:: max(1, len(listed) // 250)][:250]
            self._tokens.add(np.array(self._tokenize(some), dtype=np.int64))
            self._tokenized += len(some)
        both = mixed_hash(hashed(listed), label_hashes)
        cells = arrays[self._roles.unit].to_pylist() if self._roles.unit else []
        self._damage.add(texts, cells)
        if self._roles.unit:
            ids = forms(cells, id_form)
            self._ids.add(ids, cells)
            owners = hashed(ids)
            self._units.add(owners, label_hashes)
            self._equal_in_unit.add(mixed_hash(both, owners), label_hashes)
            self._equal.add(both, owners)
        else:
            self._equal.add(both, label_hashes)
        lowered = pc.utf8_lower(texts)
        self._names.add(lowered, labels, names)
        self._patterns.add(texts)
        self._same.add(lowered, label_hashes)

    def _date(self, name: str, array: pa.Array) -> None:
        import pyarrow.compute as pc

        if name in self._dates and self._dates[name] is None:
            return
        filled = array.filter(pc.not_equal(array, ""))
        if not len(filled):
            return
        dated = filled.filter(pc.match_substring_regex(filled, _DATE))
        if len(dated) < 0.9 * len(filled):
            self._dates[name] = None
            return
        least, most = (pc.min_max(dated)[key].as_py()[:10] for key in ("min", "max"))
        before = self._dates.get(name) or (least, most)
        self._dates[name] = min(least, before[0]), max(most, before[1])

    def end(self) -> Overview:
        """The overview."""
        found = self.found
        found.missing = {name: self._missing[name] for name in found.columns}
        found.labels = dict(self._labels.most_common(_MOST_LABELS))
        found.alike = groups_alike(found.labels)
        found.ids_alike = self._ids.found() if self._roles.unit else None
        if self._side:
            found.images = {
                "shortest side": min(short for short, _ in self._side),
                "longest side": max(long for _, long in self._side),
            }
        if self._characters.longest:
            found.characters = self._characters.as_dict()
            found.tokens = self._tokens.as_dict() if self._tokenized else {}
            found.duplicates = self._equal.groups()
        if self._roles.unit and self._characters.longest:
            found.units = self._units.groups(CROWDS)
            found.duplicates_in_units = self._equal_in_unit.groups()
        found.dates = {name: span for name, span in self._dates.items() if span is not None}
        found.table = self._table.figures()
        found.suspects = [
            *self._names.suspects(),
            *self._same.suspects(),
            *self._columns.suspects(),
            *self._patterns.suspects(),
            *self._damage.suspects(),
        ]
        return found
