"""Duplicates: what may be dropped without making one unit's privacy hang on another's.

Formal guarantee:
    Two data sets are neighbours when one is the other with one unit's records added or removed
    (:mod:`lorica.client.mechanism.units`). Let k(r) be all that training and evaluation see of a
    record: its text, its label, its image and its cells of a table if it has them, and its unit
    where it names one. *Dropping* maps
    a data set D to P(D) = one record for every value of k in D.

    P keeps neighbours neighbours. (1) *Named units.* The unit is part of k, so P works on every
    unit alone: P(D) is the disjoint union of P(D_u), and without u it loses P(D_u) and nothing
    else. (2) *Records without a unit*, each a unit of its own: two with one k are the same to
    everything that follows, so which of them stays makes no difference; taking one away changes
    P(D) by at most one record. So (ε, δ) for P(D) is (ε, δ) for D.

    Records of *different* named units are never compared. Were they, and one copy kept, removing
    the unit that holds it would bring another unit's copy back, for every text that they share:
    a change at as many units as there are shared texts, against which no bound on one unit's
    contribution helps. What stays is two units with equal records: linked units, as
    docs/privacy.md calls them.

    "normalised" first replaces every text by its normal form, a map on each record alone, then
    compares exactly. (Comparing normal forms but keeping an original would not do for (2): the
    removal of the kept record would bring a *different* one back.)

    "refuse" tells whoever hears the refusal that there are duplicates; it is decided when the
    data are read, before any coordinator is answered.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorica.client.config.data import SiteData
from lorica.common.data.records import UNNAMED, Records
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    import numpy as np

_KEY_BYTES = 16


def without_duplicates(parts: Iterable[Records], data: SiteData, where: str) -> Iterator[Records]:
    """Records as ``data.duplicates`` says: all, one of each, or refused.

    Raises:
        LoricaError: LOR-330 when two are equal and ``data.duplicates`` is "refuse".
    """
    if data.duplicates == "keep":
        yield from parts
        return
    seen: set[bytes] = set()
    before = 0
    for part in parts:
        if data.compare == "normalised":
            part = replace(part, texts=[normal_form(text) for text in part.texts])
        rows = []
        none: list[Any] = [None] * len(part)
        images = part.images or none
        table = part.table
        cells = none if table is None else [table.row(row) for row in range(len(part))]
        for row, key in enumerate(map(_key, part.texts, part.labels, part.units, images, cells)):
            if key not in seen:
                seen.add(key)
                rows.append(row)
            elif data.duplicates == "refuse":
                raise LoricaError(
                    Code.DATA_DUPLICATES,
                    f"{where}: record {before + row + 1} equals an earlier one in text, label and "
                    "unit.",
                )
        before += len(part)
        yield part if len(rows) == len(part) else part.take(rows)


def normal_form(text: str) -> str:
    """Unicode NFKC, runs of white space as one blank, none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _key(
    text: str, label: str, unit: str, image: np.ndarray | None, cells: list[bytes] | None
) -> bytes:
    owner = "" if unit.startswith(UNNAMED) else unit
    parts = [part.encode() for part in (text, label, owner)]
    if image is not None:
        parts += [str(image.shape).encode(), image.tobytes()]
    parts += cells or []
    found = hashlib.blake2b(digest_size=_KEY_BYTES)
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.digest()
