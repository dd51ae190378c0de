"""Local label names to the plan's.

The map is a function of one record's label and of site.toml alone, so one record or unit more
changes nothing of the others: neighbouring data sets stay neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from lorica.client.config.data import SiteData
from lorica.common.data.names.normal import alike_key, forms, label_form
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError


def with_classes(
    parts: Iterable[Records], data: SiteData, where: str, *, names: bool = True
) -> Iterator[Records]:
    """Records with the plan's label names; unmapped ones are dropped if ``data`` says so.

    ``names``: whether labels are names of classes (:attr:`Roles.labels_are_names`). Then, where
    ``data.alike`` is "merge", a label is first brought to what all that look like it share
    (:func:`~lorica.common.data.names.normal.alike_key`), and so are the names of the map.

    Raises:
        LoricaError: LOR-331 for a label that is neither mapped nor mapped to.
    """
    known = {**{name: name for name in data.classes.values()}, **data.classes}
    merge = names and data.alike == "merge"
    if names and data.alike == "refuse":
        known = {label_form(name): meant for name, meant in known.items()} | known
    if merge:
        known = {alike_key(name): alike_key(meant) for name, meant in known.items()}
    before = 0
    for part in parts:
        if merge:
            part = replace(part, labels=forms(part.labels, alike_key))
        labels = part.labels
        count = len(part)
        if known:
            rows = [row for row, label in enumerate(labels) if label in known]
            if len(rows) < count and data.unmapped == "refuse":
                row = next(row for row, label in enumerate(labels) if label not in known)
                raise LoricaError(
                    Code.DATA_CLASSES,
                    f"{where}: the label {labels[row]!r} of record {before + row + 1} is not in "
                    "data.classes.",
                )
            part = part if len(rows) == count else part.take(rows)
            part = replace(part, labels=[known[label] for label in part.labels])
        before += count
        yield part
