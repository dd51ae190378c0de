"""Leak suspects: what would let a model find the label without reading, or carry a person's name.

Each is a suspicion, not a proof: a label's name in its own texts, the same text under two labels,
a column that equals or foretells the label, e-mail addresses and numbers of people in texts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lorica.client.data.check.tallies import KeyTally, hashed
from lorica.common.data.names.normal import lost_digits

if TYPE_CHECKING:
    import pyarrow as pa

PATTERNS = {
    "e-mail address": r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+\.[A-Za-z]{2,}",
    "telephone number": r"(?:\+|\b00)[1-9][0-9]{0,2}[ ()/.-]*(?:[0-9][ ()/.-]?){6,}"
    r"|\b\(?[0-9]{3}\)?[ .-][0-9]{3}[ .-][0-9]{4}\b|\b0[0-9]{2,4}[ /-][0-9]{5,}",
    "IBAN": r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){3,7}\b",
    "social security number": r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b",
    "patient or case number": r"(?i)\b(?:mrn|pat(?:ient)?[ -]?(?:id|nr|no)|case (?:no|id)"
    r"|fallnummer)[ .:#-]*[0-9]{4,}",
    "card number": r"\b(?:[0-9]{4}[ -]?){3}[0-9]{4}\b",
}
"""What of a person is looked for in texts; regular expressions of RE2."""

MOST_LABELS = 200
"""Labels whose names are looked for."""

_SAMPLED = 100_000  # rows that columns are judged by
_FORETELLS, _REPEATS = 0.9, 30
_OWN_SHARE = 0.05
_NO_DIGITS = str.maketrans("", "", "0123456789")


@dataclass(frozen=True)
class Suspect:
    """One suspicion."""

    what: str
    records: int
    """Records that it concerns."""
    detail: str


class LabelNames:
    """How often a label's name stands in its own texts, and in all."""

    def __init__(self) -> None:
        self._own: Counter[str] = Counter()
        self._texts: Counter[str] = Counter()
        self._sample: list[pa.Array] = []
        self._sampled = 0

    def add(self, lowered: pa.Array, labels: pa.Array, names: list[str]) -> None:
        """Count a batch; ``names`` are the labels that occur in it."""
        import pyarrow.compute as pc

        for name in names[:MOST_LABELS]:
            texts = lowered.filter(pc.equal(labels, name))
            self._texts[name] += len(texts)
            self._own[name] += pc.sum(pc.match_substring(texts, label_words(name))).as_py() or 0
        if self._sampled < _SAMPLED // 5:
            self._sample.append(lowered.slice(0, 1000))
            self._sampled += min(1000, len(lowered))

    def suspects(self) -> list[Suspect]:
        """Labels whose names stand in their own texts far more often than in others."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = []
        texts = pa.concat_arrays(self._sample) if self._sample else pa.array([], pa.string())
        for name, own in self._own.most_common():
            share = own / max(1, self._texts[name])
            if share < _OWN_SHARE:
                continue
            everywhere = pc.mean(pc.match_substring(texts, label_words(name))).as_py() or 0.0
            if len(self._own) == 1 or share > 2 * everywhere:
                found.append(
                    Suspect(
                        "label in the text",
                        own,
                        f"'{name}' stands in {share:.1%} of its own texts, in {everywhere:.1%} of "
                        "all",
                    )
                )
        return found


def label_words(name: str) -> str:
    """A label's name as it may stand in a text, in small letters."""
    return " ".join(name.replace("_", " ").replace("-", " ").split()).lower()


class Patterns:
    """Texts that hold something of a person."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, texts: pa.Array) -> None:
        """Count a batch of texts."""
        import pyarrow.compute as pc

        with_at = texts.filter(pc.match_substring(texts, "@"))
        with_digits = texts.filter(pc.match_substring_regex(texts, "[0-9]{2}.*[0-9]{2}"))
        for name, pattern in PATTERNS.items():
            candidates = with_at if name == "e-mail address" else with_digits
            if len(candidates):
                matched = pc.match_substring_regex(candidates, pattern)
                self._counts[name] += pc.sum(matched).as_py() or 0

    def suspects(self) -> list[Suspect]:
        """What was found, most frequent first."""
        return [
            Suspect("identifier in the text", count, f"looks like: {name}")
            for name, count in self._counts.most_common()
            if count
        ]


class Damage:
    """Marks of a file that was damaged on its way: ids that lost digits, NUL in texts."""

    def __init__(self) -> None:
        self._ids = self._texts = 0
        self._example = ""

    def add(self, texts: pa.Array, ids: Sequence[str]) -> None:
        """Count a batch; ``ids`` are the cells that say whose record it is, or none."""
        import pyarrow.compute as pc

        self._texts += pc.sum(pc.match_substring(texts, "\0")).as_py() or 0
        for cell in ids:
            if lost_digits(cell):
                self._ids += 1
                self._example = self._example or cell.strip()

    def suspects(self) -> list[Suspect]:
        """What was found."""
        found = []
        if self._ids:
            said = f"such as {self._example}: several people's ids become one, and are refused"
            found.append(Suspect("id that lost digits", self._ids, said))
        if self._texts:
            said = "NUL characters, as of a file that was written or copied wrongly"
            found.append(Suspect("damaged text", self._texts, said))
        return found


class SameTextOtherLabel:
    """Texts that are alike but for case, digits and punctuation, under several labels."""

    def __init__(self) -> None:
        self._tally = KeyTally()

    def add(self, lowered: pa.Array, label_hashes: np.ndarray) -> None:
        """Count a batch."""
        import pyarrow.compute as pc

        bare = pc.replace_substring_regex(lowered, r"[^\pL]+", " ")
        self._tally.add(hashed(bare.to_pylist()), label_hashes)

    def suspects(self) -> list[Suspect]:
        """One suspicion, if there is such a text."""
        groups = self._tally.groups()
        if not groups.mixed:
            return []
        about = "" if groups.exact else "about "
        return [
            Suspect(
                "one text, several labels",
                groups.mixed,
                f"{about}{groups.mixed:,} texts, equal but for case, digits and punctuation, have "
                "more than one label",
            )
        ]


class Columns:
    """Whether a column gives the label away, judged by a sample of rows."""

    def __init__(self) -> None:
        self._labels: list[str] = []
        self._cells: dict[str, list[str]] = defaultdict(list)
        self._stride = 1
        self._equal: Counter[str] = Counter()
        self._rows = 0

    def add(self, labels: pa.Array, others: Mapping[str, pa.Array]) -> None:
        """Take a batch of columns other than text and label."""
        import pyarrow.compute as pc

        self._rows += len(labels)
        for name, cells in others.items():
            trimmed = pc.utf8_trim_whitespace(cells)
            self._equal[name] += pc.sum(pc.equal(trimmed, labels)).as_py() or 0
        if len(self._labels) < _SAMPLED:
            self._labels += labels.to_pylist()
            for name, cells in others.items():
                self._cells[name] += cells.to_pylist()

    def suspects(self) -> list[Suspect]:
        """Columns that equal the label in most rows, or foretell it."""
        found = []
        most = max(Counter(self._labels).values(), default=0) / max(1, len(self._labels))
        for name, cells in self._cells.items():
            if self._equal[name] > _FORETELLS * self._rows:
                what = f"column '{name}' equals the label"
                found.append(Suspect("column equals label", self._equal[name], what))
                continue
            bare = [cell.translate(_NO_DIGITS) for cell in cells]
            forms = {"": cells} | ({", its digits left out,": bare} if bare != cells else {})
            for form, values in forms.items():
                right, judged = foretold(values, self._labels)
                if judged >= _REPEATS and right > max(_FORETELLS, most + 0.1) * judged:
                    what = f"column '{name}'{form} foretells {right / judged:.0%} of the labels"
                    found.append(
                        Suspect("column foretells label", judged, f"{what} of a sample's rows")
                    )
                    break
        return found


def foretold(values: list[str], labels: list[str]) -> tuple[int, int]:
    """How many rows' labels are those of most other rows with the same value, of how many rows
    that share their value with another."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for value, label in zip(values, labels, strict=True):
        if value:
            groups[value][label] += 1
    right = judged = 0
    for counts in groups.values():
        if (size := counts.total()) < 2:
            continue
        judged += size
        ranked: list[Any] = [*(n for _, n in counts.most_common(2)), 0]
        if ranked[0] - 1 >= max(1, ranked[1]):
            right += ranked[0]
    return right, judged
