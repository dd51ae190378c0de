"""Entities in texts: read from tags or spans, laid on a tokenizer's tokens, and found in tags.

A record gives its entities in one of two ways, as JSON:

- a list of *tokens* as the text and a list of *tags* as the label, in the BIO scheme: "O", "B-x"
  where an entity of kind x begins, "I-x" where it goes on;
- a text, and a list of *spans* as the label: ``{"start": 8, "end": 15, "label": "drug"}`` or
  ``[8, 15, "drug"]``, in characters from 0, the end not included.

Both become spans over the text; tokens are joined by blanks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lorica.common.tasks.targets import json_list, shown

OUTSIDE = 0
"""Number of the tag "O"; kind k has 1 + 2k where it begins and 2 + 2k where it goes on."""

IGNORED = -100
"""In place of a tag: no token of the text (padding, special tokens)."""

Found = set[tuple[int, int, int]]
"""Entities by first token, token after the last, and number of the kind."""


@dataclass(frozen=True, order=True)
class Span:
    """An entity's place in a text, in characters, and its kind."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Note:
    """A text with its entities, in order, none overlapping another."""

    text: str
    spans: tuple[Span, ...]


def read_note(text: str, label: str) -> Note:
    """A record's text and entities; a record without a label has none.

    Raises:
        ValueError: with a reason for the message.
    """
    if not label.strip():
        return Note(text, ())
    given = json_list(label, "tags or spans")
    if given and all(isinstance(item, str) for item in given):
        return _of_tags(json_list(text, "tokens"), given)
    if not given and text.lstrip().startswith("["):
        raise ValueError("the text is a list of tokens, but there are no tags")
    return Note(text, _checked([_span(item) for item in given], text))


def _of_tags(tokens: list[Any], tags: list[str]) -> Note:
    if not all(isinstance(token, str) and token.strip() for token in tokens):
        raise ValueError("a token is empty or no text")
    if len(tokens) != len(tags):
        raise ValueError(f"there are {len(tokens)} tokens, but {len(tags)} tags")
    spans: list[Span] = []
    place, before = 0, "O"
    for number, (token, tag) in enumerate(zip(tokens, tags, strict=True), 1):
        mark, _, kind = tag.partition("-")
        if tag != "O" and (mark not in ("B", "I") or not kind):
            raise ValueError(f"tag {number} is {shown(tag)}, not O, B-kind or I-kind")
        if mark == "I" and before not in (f"B-{kind}", f"I-{kind}"):
            raise ValueError(
                f"tag {number} is {shown(tag)}, but the tag before it is {shown(before)}: an "
                "entity begins with B-"
            )
        if mark == "B":
            spans.append(Span(place, place + len(token), kind))
        elif mark == "I":
            spans[-1] = Span(spans[-1].start, place + len(token), kind)
        place, before = place + len(token) + 1, tag
    return Note(" ".join(tokens), tuple(spans))


def _span(item: Any) -> Span:
    if isinstance(item, dict):
        item = [item.get("start"), item.get("end"), item.get("label")]
    if not isinstance(item, list) or len(item) != 3:
        raise ValueError(f"{shown(item)} is no span: expected start, end and label")
    start, end, label = item
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (start, end))
    if not whole or not isinstance(label, str) or not label:
        raise ValueError(f"{shown(item)} is no span: expected two whole numbers and a label")
    return Span(start, end, label)


def _checked(spans: list[Span], text: str) -> tuple[Span, ...]:
    ordered = sorted(spans)
    for span in ordered:
        if not 0 <= span.start < span.end <= len(text):
            raise ValueError(
                f"the span {span.start} to {span.end} is empty or outside the text, which has "
                f"{len(text)} characters"
            )
    for left, right in pairwise(ordered):
        if right.start < left.end:
            raise ValueError(
                f"the spans {left.start} to {left.end} and {right.start} to {right.end} overlap"
            )
    return tuple(ordered)


def tags_of(
    spans: Sequence[Span], offsets: np.ndarray, kinds: Sequence[str]
) -> tuple[np.ndarray, int]:
    """The tag of every token, and the number of entities that no token shows.

    A token belongs to an entity if they share a character. Entities beyond the last token (the
    text was cut) and those whose tokens all belong to one before are not shown.

    Args:
        spans: in order, without overlap, of kinds in ``kinds``.
        offsets: first character of every token and the one after its last, shape (T, 2); equal
            for tokens that are not of the text.
        kinds: the plan's labels.
    """
    number = {kind: index for index, kind in enumerate(kinds)}
    real = offsets[:, 1] > offsets[:, 0]
    tags = np.where(real, OUTSIDE, IGNORED).astype(np.int64)
    hidden = 0
    for span in spans:
        shares = real & (offsets[:, 0] < span.end) & (offsets[:, 1] > span.start)
        free = np.flatnonzero(shares & (tags == OUTSIDE))
        if not len(free):
            hidden += 1
            continue
        tags[free] = 2 + 2 * number[span.label]
        tags[free[0]] -= 1
    return tags, hidden


def continues_word(text: str, offsets: np.ndarray) -> np.ndarray:
    """Which tokens go on within the word of the token before, shape (T,), bool.

    They do where one ends and the next begins between two letters of a script with capitals, or
    digits. Scripts without (Chinese, Thai, Arabic) may write words without blanks between: there
    every token stands for itself.

    Args:
        text: the whole text.
        offsets: as for :func:`tags_of`.
    """
    found = np.zeros(len(offsets), dtype=bool)
    for place in range(1, len(offsets)):
        (first, last), (start, end) = offsets[place - 1], offsets[place]
        inside = first < last == start < end
        found[place] = inside and _in_word(text[start - 1]) and _in_word(text[start])
    return found


def _in_word(letter: str) -> bool:
    return unicodedata.category(letter) in ("Ll", "Lu", "Lt", "Nd")


def by_words(tags: np.ndarray, continues: np.ndarray) -> np.ndarray:
    """Tags (T,) in which the first token of a word decides for the whole word: entities begin and
    end with words.

    Args:
        tags: of every token.
        continues: as of :func:`continues_word`.
    """
    found = tags.copy()
    for place in np.flatnonzero(continues):
        before = found[place - 1]
        found[place] = before + before % 2 if before > OUTSIDE else before
    return found


def entities_of(tags: Iterable[int]) -> Found:
    """The entities in a sequence of tags; tokens to be ignored end none and begin none.

    As conlleval reads them: an entity also begins where a kind goes on that was not there before.
    """
    found: Found = set()
    begun, kind, last = -1, -1, -1
    for place, tag in enumerate(tags):
        if tag == IGNORED:
            continue
        now = (tag - 1) // 2 if tag > OUTSIDE else -1
        starts = tag > OUTSIDE and (tag % 2 == 1 or now != kind)
        if kind >= 0 and (now != kind or starts):
            found.add((begun, last + 1, kind))
        if starts:
            begun = place
        kind, last = now, place
    if kind >= 0:
        found.add((begun, last + 1, kind))
    return found
