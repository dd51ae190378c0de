"""Ids of units that are written in several ways: one in normal form, or only alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorica.common.data.names.normal import alike_key

_MOST = 1_000_000  # ids that are looked at
_SHOWN = 3


@dataclass(frozen=True)
class IdsAlike:
    """How often ids are written in several ways."""

    one: int
    """Ids with several spellings of one normal form (1000, 1000.0): each is one unit."""
    alike: int
    """Ids that differ from another only in case, Unicode's forms or leading zeros: units of
    their own."""
    examples: list[str]
    """Of the latter, a few pairs."""


class IdSpellings:
    """The spellings of ids, as they come by."""

    def __init__(self) -> None:
        self._spelled: dict[str, str] = {}  # normal form -> its first spelling
        self._several: set[str] = set()
        self._keys: dict[str, str] = {}  # what look-alikes share -> the first normal form
        self._alike: dict[str, str] = {}  # normal form -> an earlier one that it looks like

    def add(self, ids: Sequence[str], cells: Sequence[str]) -> None:
        """Take in ids and the cells that they were made of."""
        for name, cell in dict.fromkeys(zip(ids, cells, strict=True)):
            if not name or (name not in self._spelled and len(self._spelled) >= _MOST):
                continue
            if self._spelled.setdefault(name, cell.strip()) != cell.strip():
                self._several.add(name)
            key = alike_key(name).lstrip("0") or "0"
            other = self._keys.setdefault(key, name)
            if other != name:
                self._alike[name] = other

    def found(self) -> IdsAlike:
        """What was seen, of the first million ids."""
        pairs = list(self._alike.items())[:_SHOWN]
        shown = [f"{other!r} and {name!r}" for name, other in pairs]
        return IdsAlike(len(self._several), len(self._alike), shown)
