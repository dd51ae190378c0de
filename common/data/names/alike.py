"""Labels and sites' names that only look alike: refused, merged or kept, as the user chooses.

"Billing", "billing" and "billing" with a no-break space are three texts and, nearly always, one
class. Nobody guesses: two spellings in one column are refused until someone says which it is.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from lorica.common.data.names.normal import BLANKS, alike_key, label_form, tidy
from lorica.common.errors import Code, LoricaError

Alike = Literal["refuse", "merge", "keep"]
"""What is done with spellings that look alike."""

CHOICE = "--set data.alike={}"
"""How the choice is made in a simulation."""

_SHOWN = 5


class Spellings:
    """The spellings of one column, as its cells come by."""

    def __init__(self, mode: Alike, where: str, column: str, setting: str) -> None:
        """
        Args:
            mode: "refuse" a second spelling; "merge" and "keep" let all pass.
            where: begins the message.
            column: of the cells.
            setting: how the choice is written where the column is named, such as
                ``--set data.alike=merge``.
        """
        self._mode, self._where, self._column, self._setting = mode, where, column, setting
        self._forms: dict[str, str] = {}
        self._first: dict[str, tuple[str, int]] = {}

    def of(self, cells: Sequence[str], before: int) -> list[str]:
        """The cells in normal form; of mode "keep", without blanks at their ends.

        Raises:
            LoricaError: LOR-332 two spellings that look alike, in mode "refuse".
        """
        if self._mode == "keep":
            return [cell.strip(BLANKS) for cell in cells]
        found = []
        for row, cell in enumerate(cells):
            form = self._forms.get(cell)
            if form is None:
                form = self._forms[cell] = self._new(cell, before + row)
            found.append(form)
        return found

    def _new(self, cell: str, row: int) -> str:
        form, bare = label_form(cell), cell.strip(BLANKS)
        other, first = self._first.setdefault(alike_key(cell), (bare, row))
        if other != bare and self._mode == "refuse":
            raise look_alike(
                self._where, self._column, [(other, first), (bare, row)], self._setting
            )
        return form


def look_alike(
    where: str, column: str, found: Iterable[tuple[str, int]], setting: str
) -> LoricaError:
    """LOR-332 for spellings and the rows of their first records, counted from 0."""
    named = " and ".join(f"{shown_spelling(text)} (record {row + 1})" for text, row in found)
    return LoricaError(
        Code.DATA_ALIKE,
        f"{where}, column '{column}': {named} only look alike.",
        mend=f"Correct the data; or {setting.format('merge')} to take them as one, "
        f"{setting.format('keep')} if they are different.",
    )


def shown_spelling(text: str) -> str:
    """A text in quotes in which what cannot be seen or told apart is written out."""
    return "'" + "".join(c if c.isascii() and c.isprintable() else _escaped(c) for c in text) + "'"


def _escaped(character: str) -> str:
    if character.isprintable() and not (character.isspace() or unicodedata.combining(character)):
        return character
    return character.encode("unicode_escape").decode("ascii")


def groups_alike(counts: Mapping[str, int]) -> list[dict[str, int]]:
    """The spellings that look alike, with their counts: one mapping for every two or more."""
    groups: dict[str, dict[str, int]] = defaultdict(dict)
    for text, count in counts.items():
        groups[alike_key(text)][text] = count
    return [group for group in groups.values() if len(group) > 1]


def one_spelling(names: Iterable[str], columns: Sequence[Sequence[str]]) -> dict[str, str]:
    """Every spelling in the columns -> the one that stands for all that look like it.

    Args:
        names: spellings that go first, as the plan's own labels.
        columns: else the most frequent in them is taken, without what cannot be seen; of equally
            frequent ones the first in the order of characters.
    """
    spellings = {cell for column in columns for cell in column}
    counts = Counter(tidy(cell) for column in columns for cell in column)
    chosen = {alike_key(name): name for name in names}
    for text in sorted(counts, key=lambda cell: (-counts[cell], cell)):
        chosen.setdefault(alike_key(text), text)
    return {text: chosen[alike_key(text)] for text in spellings}


def refuse_alike(names: Iterable[str], what: str, setting: str) -> None:
    """Return if no two of the names look alike. Raises LOR-332."""
    groups = groups_alike(dict.fromkeys(sorted(set(names)), 0))
    if groups:
        shown = "; ".join(" and ".join(map(shown_spelling, group)) for group in groups[:_SHOWN])
        raise LoricaError(
            Code.DATA_ALIKE,
            f"{what}: {shown} only look alike.",
            mend=f"Correct the data; or {setting.format('merge')} to take them as one, "
            f"{setting.format('keep')} if they are different.",
        )
