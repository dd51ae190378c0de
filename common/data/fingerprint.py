"""A fingerprint of records: whether a run goes on with the data that it began with.

It tells that something changed, not what. It is a hash of the records, so whoever can guess all
of them can test the guess: a site keeps it as private as the records and sends it nowhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from lorica.common.data.records import UNNAMED, Records

_BITS = 256


def fingerprint(*data: Records, ordered: bool = True) -> str:
    """64 hex digits of all that the records hold.

    Args:
        data: training data, test data.
        ordered: whether their order counts, as it does where sites are made of them. A database
            that gives the same rows in another order has the same fingerprint without it: the
            sum of the records' SHA-256 modulo 2^256, with their number.
    """
    found = hashlib.sha256()
    for part in data:
        found.update(len(part).to_bytes(8, "big"))
        if ordered:
            for one in _each(part):
                found.update(one)
        else:
            total = sum(int.from_bytes(one, "big") for one in _each(part)) % (1 << _BITS)
            found.update(total.to_bytes(_BITS // 8, "big"))
    return found.hexdigest()


def _each(records: Records) -> Iterator[bytes]:
    """SHA-256 of every record; of a unit that is not named, its absence."""
    for row, text in enumerate(records.texts):
        unit = records.units[row]
        cells = [text, records.labels[row], records.groups[row]]
        cells.append("" if unit.startswith(UNNAMED) else unit)
        parts = [cell.encode("utf-8", "surrogatepass") for cell in cells]
        if records.images is not None:
            image = records.images[row]
            parts += [str(image.shape).encode(), image.tobytes()]
        if records.table is not None:
            parts += records.table.row(row)
        yield _hash(parts)


def _hash(parts: Iterable[bytes]) -> bytes:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.digest()
