"""Structured logs: one object a line, with ids, whatever a text holds."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.logs import JsonFormatter, log_context, set_up_logging


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Where a logger of the package writes JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    log = logging.getLogger("lorica.test")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield stream
    log.removeHandler(handler)


def test_every_line_is_one_object_whatever_the_text(lines: io.StringIO) -> None:
    log = logging.getLogger("lorica.test")
    for text in ('a "quoted" text', "two\nlines", "\x1b[2J\u2028end", "[LOR-504] late"):
        log.info(text)
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [entry["text"] for entry in found][1] == "two\nlines"
    assert len(found) == 4 and found[3]["code"] == "LOR-504"
    assert lines.getvalue().isascii()
    assert set(found[0]) == {"time", "level", "logger", "text"}


def test_ids_come_from_the_context_and_end_with_it(lines: io.StringIO) -> None:
    log = logging.getLogger("lorica.test")
    with log_context(run="r1"), log_context(round=3) as inner:
        inner["site"] = "north"
        log.info("within")
        log.info("another site", extra={"site": "south"})
    log.info("after")
    within, other, after = (json.loads(line) for line in lines.getvalue().splitlines())
    assert (within["run"], within["round"], within["site"]) == ("r1", 3, "north")
    assert (other["run"], other["site"]) == ("r1", "south")
    assert "run" not in after


def test_an_error_is_named_by_type_and_code_alone(lines: io.StringIO) -> None:
    """Its text and traceback may hold data."""
    try:
        raise LoricaError(Code.DATA_UNKNOWN_LABEL, "Row 7 says 'secret diagnosis'.")
    except LoricaError as error:
        logging.getLogger("lorica.test").warning("refused", exc_info=error)
    entry = json.loads(lines.getvalue())
    assert (entry["error"], entry["code"]) == ("LoricaError", "LOR-306")
    assert "secret" not in lines.getvalue()


def test_the_form_is_the_environments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("lorica")
    level, before = log.level, list(log.handlers)
    monkeypatch.setenv("LORICA_LOG", "json")
    try:
        set_up_logging()
        set_up_logging()
        assert len(log.handlers) == len(before) + 1
        logging.getLogger("lorica.coordinator").info("hello")
        assert json.loads(capsys.readouterr().err)["text"] == "hello"
    finally:
        log.setLevel(level)
        log.handlers[:] = before
    monkeypatch.setenv("LORICA_LOG", "xml")
    with pytest.raises(LoricaError) as caught:
        set_up_logging()
    assert caught.value.code is Code.PLAN_BAD_VALUE
