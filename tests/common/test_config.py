"""The one way from TOML to a model, to a sentence, and back."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lorica.common.config import (
    Section,
    documented,
    documented_sections,
    in_line,
    read_toml,
    sentences,
)
from lorica.common.errors import Code, LoricaError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.one_of(TEXTS, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
)


class Inner(Section):
    """What is inside.

    And more of it."""

    rate: float = 0.5
    """How fast, per second."""
    names: list[str] = []
    """Whose."""


class Whole(Section):
    """Everything."""

    inner: Inner = Inner()


@given(VALUES)
def test_a_value_in_one_line_is_read_back(value: object) -> None:
    line = in_line(value)
    assert "\n" not in line
    assert tomllib.loads(f"v = {line}") == {"v": value}


def test_documented_sections_are_read_back_and_say_what_they_are() -> None:
    whole = Whole(inner=Inner(rate=float("inf"), names=['a "b"', "ü\x7f"]))
    text = documented_sections(whole)
    assert Whole.model_validate(tomllib.loads(text)) == whole
    assert text.splitlines()[:3] == ["# What is inside.", "[inner]", "# How fast, per second."]
    assert "\n".join(documented(whole.inner)) in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "There is no recipe at "),
        (b"rate = \xff", " is not UTF-8 text."),
        (b"rate = ", " is not valid TOML: "),
        (b"rate = " + b"[" * 5000, " is nested too deeply."),
    ],
)
def test_a_file_that_is_no_toml_is_refused_in_a_sentence(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoricaError) as caught:
        read_toml(path, "recipe", Code.SITE_CONFIG, missing=Code.PLAN_UNREADABLE)
    expected = Code.PLAN_UNREADABLE if content is None else Code.SITE_CONFIG
    assert caught.value.code is expected
    assert says in caught.value.detail and str(path) in caught.value.detail


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"inner": {"rat": 1}}, "inner.rat is unknown. Did you mean 'rate'?"),
        ({"iner": {}}, "iner is unknown. Did you mean 'inner'?"),
        ({"other": 3}, "other is unknown."),
        ({"inner": {"rate": "fast"}}, "inner.rate: Input should be a valid number"),
        ({"inner": {"rate": True}}, "inner.rate: must not be true or false, got True."),
    ],
)
def test_what_cannot_be_is_a_sentence(content: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(content)
    assert sentences(caught.value, Whole).startswith(says)
