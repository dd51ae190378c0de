"""Entities: as records write them, on a tokenizer's tokens, and as tags say them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorica.common.tasks.tokens.entities import (
    IGNORED,
    Note,
    Span,
    by_words,
    continues_word,
    entities_of,
    read_note,
    tags_of,
)

KINDS = ["drug", "dose"]
NAMES = ["O", "B-drug", "I-drug", "B-dose", "I-dose"]


def test_tags_and_spans_of_the_same_text_are_the_same_note() -> None:
    tokens = ["took", "aspirin", "100", "mg", "today"]
    tags = ["O", "B-drug", "B-dose", "I-dose", "O"]
    spans = [[13, 19, "dose"], {"start": 5, "end": 12, "label": "drug"}]
    expected = Note("took aspirin 100 mg today", (Span(5, 12, "drug"), Span(13, 19, "dose")))
    assert read_note(json.dumps(tokens), json.dumps(tags)) == expected
    assert read_note("took aspirin 100 mg today", json.dumps(spans)) == expected
    assert (
        read_note("took aspirin", "[]") == read_note("took aspirin", "") == Note("took aspirin", ())
    )


@pytest.mark.parametrize(
    ("text", "label", "says"),
    [
        ('["a", "b"]', '["O"]', "2 tokens, but 1 tags"),
        ('["a", "b"]', '["O", "I-drug"]', "tag 2 is 'I-drug', but the tag before it is 'O'"),
        ('["a", "b"]', '["B-dose", "I-drug"]', "an entity begins with B-"),
        ('["a"]', '["B-"]', "not O, B-kind or I-kind"),
        ('["a"]', '["X-drug"]', "not O, B-kind or I-kind"),
        ('["a", " "]', '["O", "O"]', "a token is empty"),
        ('["a", 1]', '["O", "O"]', "a token is empty or no text"),
        ("a b", '["O", "O"]', "are no JSON"),
        ('["a"]', "[]", "there are no tags"),
        ("abc", "O O", "are no JSON"),
        ("abc", '{"start": 1}', "are no list"),
        ("abc", '[[0, 4, "drug"]]', "outside the text, which has 3 characters"),
        ("abc", '[[-1, 2, "drug"]]', "outside the text"),
        ("abc", '[[1, 1, "drug"]]', "is empty"),
        ("abc", '[[0, 2, "drug"], [1, 3, "dose"]]', "overlap"),
        ("abc", "[[0, 2]]", "expected start, end and label"),
        ("abc", '[[0.5, 2, "drug"]]', "two whole numbers and a label"),
        ("abc", '[[true, 2, "drug"]]', "two whole numbers and a label"),
        ("abc", '[[0, 2, ""]]', "two whole numbers and a label"),
        ("abc", '["O", 3]', "is no span"),
    ],
)
def test_what_is_no_note_is_refused_with_a_reason(text: str, label: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        read_note(text, label)


def test_every_piece_of_a_word_is_tagged_and_special_tokens_are_not() -> None:
    # "aspirin" in three pieces; the span ends within the last one, which belongs to it
    offsets = np.array([[0, 0], [0, 3], [3, 5], [5, 7], [8, 12], [0, 0]])
    tags, hidden = tags_of([Span(0, 6, "drug")], offsets, KINDS)
    assert tags.tolist() == [IGNORED, 1, 2, 2, 0, IGNORED]
    assert hidden == 0


def test_entities_that_the_cut_text_lacks_are_counted() -> None:
    offsets = np.array([[0, 0], [0, 3], [0, 0]])
    tags, hidden = tags_of([Span(0, 3, "drug"), Span(9, 12, "dose")], offsets, KINDS)
    assert tags.tolist() == [IGNORED, 1, IGNORED]
    assert hidden == 1


def by_letters(tags: list[int]) -> set[tuple[int, int, int]]:
    """An independent reference: regular expressions over a string with a letter for each tag."""
    letters = "".join("oAaBb"[tag] for tag in tags)
    return {
        (match.start(), match.end(), kind)
        for kind, pattern in enumerate(("Aa*|(?<![Aa])a+", "Bb*|(?<![Bb])b+"))
        for match in re.finditer(pattern, letters)
    }


@given(st.lists(st.integers(0, 4), max_size=12))
def test_entities_equal_those_that_regular_expressions_find(tags: list[int]) -> None:
    assert entities_of(tags) == by_letters(tags)


@given(st.lists(st.integers(0, 4), max_size=12))
def test_ignored_tokens_at_the_ends_change_nothing_but_the_place(tags: list[int]) -> None:
    moved = {(first + 1, after + 1, kind) for first, after, kind in entities_of(tags)}
    assert entities_of([IGNORED, *tags, IGNORED]) == moved


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from([-1, 0, 1])), max_size=8))
def test_spans_laid_on_whole_tokens_are_found_again(parts: list[tuple[int, int]]) -> None:
    """Tokens of one character each; parts are lengths and kinds, -1 outside."""
    spans, expected, place = [], set(), 0
    for length, kind in parts:
        if kind >= 0:
            spans.append(Span(place, place + length, KINDS[kind]))
            expected.add((place, place + length, kind))
        place += length
    offsets = np.array([[i, i + 1] for i in range(place)]).reshape(-1, 2)
    tags, hidden = tags_of(spans, offsets, KINDS)
    assert entities_of(tags.tolist()) == expected
    assert hidden == 0


@pytest.mark.parametrize(
    ("pieces", "goes_on"),
    [
        (["adeno", "carcin", "oma"], [False, True, True]),
        (["adeno", " ", "oma"], [False, False, False]),  # a blank has a token in some models
        (["colon", "-", "cancer"], [False, False, False]),
        (["BR", "CA", "1"], [False, True, True]),
        (["naï", "veté", ","], [False, True, False]),
        (["肺", "癌"], [False, False]),  # no blanks between words
        (["سر", "طان"], [False, False]),
    ],
)
def test_a_word_is_what_runs_on_in_letters_and_digits(
    pieces: list[str], goes_on: list[bool]
) -> None:
    ends = np.cumsum([len(piece) for piece in pieces])
    offsets = np.stack([ends - [len(piece) for piece in pieces], ends], axis=1)
    text = "".join(pieces)
    assert continues_word(text, offsets).tolist() == goes_on
    special = np.concatenate([[[0, 0]], offsets, [[0, 0]]])
    assert continues_word(text, special).tolist() == [False, *goes_on, False]
    assert continues_word(text, offsets[::2]).tolist()[1:] == [False] * (len(pieces[::2]) - 1)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([0, 2, 2, 0], [0, 0, 0, 0]),
        ([1, 0, 4, 2], [1, 2, 2, 2]),
        ([2, 0, 1, 1], [2, 2, 2, 1]),
        ([3, 3, 4, 0], [3, 4, 4, 0]),
    ],
)
def test_the_first_piece_of_a_word_decides_for_all_of_it(
    tags: list[int], expected: list[int]
) -> None:
    given = np.array(tags)
    found = by_words(given, np.array([False, True, True, False]))
    assert found.tolist() == expected and given.tolist() == tags
    assert len(entities_of(found.tolist())) <= 2
