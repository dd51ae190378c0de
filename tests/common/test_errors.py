"""The error catalogue, and what of an error may leave a site."""

from __future__ import annotations

import pickle
import re

import pytest

from lorica.common.errors import CATALOGUE, Code, Entry, LoricaError

CANARY = "Jane Doe, born 1970"
AREAS = {"1": 11, "2": 12, "3": 13, "4": 14, "5": 15, "6": 16, "7": 17, "8": 18, "9": 19}


def test_codes_are_unique_and_well_formed() -> None:
    assert len(Code.__members__) == len(Code)  # two names of one value would be one member
    for code in Code:
        assert re.fullmatch(r"LOR-[1-9]\d\d", code.value)


def test_the_catalogue_has_every_code_and_no_other() -> None:
    assert set(CATALOGUE) == set(Code)


@pytest.mark.parametrize("code", Code, ids=lambda code: code.value)
def test_every_entry_has_three_full_sentences(code: Code) -> None:
    entry = code.entry
    assert isinstance(entry, Entry)
    for text in (entry.title, entry.meaning, entry.mend):
        assert re.match(r"[A-Z]|[a-z]+\.[a-z]+", text)  # or a key: data.text, site.toml
        assert text.endswith((".", " new.csv"))  # or a command
        assert len(text.split()) >= 4
        assert "  " not in text and "{" not in text
    assert len({entry.title, entry.meaning, entry.mend}) == 3


def test_codes_and_catalogue_are_in_the_order_of_the_numbers() -> None:
    assert [code.value for code in Code] == sorted(code.value for code in Code)
    assert list(CATALOGUE) == list(Code)


def test_titles_are_distinct() -> None:
    assert len({entry.title for entry in CATALOGUE.values()}) == len(CATALOGUE)


@pytest.mark.parametrize("code", Code, ids=lambda code: code.value)
def test_the_public_reason_is_the_code_and_title_alone(code: Code) -> None:
    error = LoricaError(code, f"Record 7 says {CANARY}.", mend=f"Ask {CANARY}.")
    assert error.public_reason == f"{code.value}: {code.entry.title}"
    assert CANARY not in error.public_reason
    assert CANARY in str(error) and code.value in str(error)


@pytest.mark.parametrize("code", Code, ids=lambda code: code.value)
def test_the_exit_status_says_the_area(code: Code) -> None:
    assert LoricaError(code, "").exit_status == AREAS[code.value[4]]


@pytest.mark.parametrize("mend", [None, "Do that instead."])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling(mend: str | None, protocol: int) -> None:
    error = LoricaError(Code.DATA_COLUMN, "No column 'x'.", mend=mend)
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is LoricaError
    assert (copy.code, copy.detail, copy.mend) == (error.code, error.detail, error.mend)
    assert str(copy) == str(error)


def test_advice_for_the_case_replaces_the_general_one() -> None:
    assert LoricaError(Code.DATA_COLUMN, "x").mend == Code.DATA_COLUMN.entry.mend
    assert LoricaError(Code.DATA_COLUMN, "x", mend="Do that.").mend == "Do that."
