"""The wire: what is packed comes back through Flower's real serialisation, all else is refused."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.display.text import printable
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.wire import fields as message_fields
from lorica.common.wire import messages
from lorica.common.wire.fields import PROTOCOL
from lorica.common.wire.messages import (
    Reply,
    Request,
    pack_reply,
    pack_request,
    refusal,
    refusal_code,
    reply_from_bytes,
    reply_to_bytes,
    unpack_reply,
    unpack_request,
)

Refuses = Callable[[Code, Callable[[], object]], str]

CANARY = "Jane Doe, born 1970, /mnt/ward7/notes.csv"
PLAN = RunPlan().replace(task={"labels": ["naïve", "smile 😀"]}, privacy={"epsilon": "inf"})
REQUEST = Request(PLAN, "run-1", 3, b"\x00\xffblob")
REPLY = Reply(PLAN.fingerprint, 3, "ok", "", "ward 7", 1200, b"\x01\xfeupdate")


def as_bytes(record: RecordDict) -> bytes:
    """What Flower puts on the wire for a message with this content."""
    metadata = Metadata(1, "", 1, 7, "", "3", 0.0, 60.0, "train")
    return message_to_proto(make_message(metadata, record)).SerializeToString()


def over_the_wire(record: RecordDict) -> RecordDict:
    """The record after Flower turned it into bytes and back."""
    return message_from_proto(ProtoMessage.FromString(as_bytes(record))).content


@settings(max_examples=50, deadline=None)
@given(
    run=st.text(max_size=20),
    round=st.integers(0, 2**63 - 1),
    blob=st.binary(max_size=200),
    rank=st.integers(1, 512),
)
def test_a_request_survives_the_wire(run: str, round: int, blob: bytes, rank: int) -> None:
    request = Request(PLAN.replace(adapter={"rank": rank}), run, round, blob)
    received = unpack_request(over_the_wire(pack_request(request)))
    assert received == request
    assert received.plan.fingerprint == request.plan.fingerprint


@settings(max_examples=50, deadline=None)
@given(
    round=st.integers(0, 2**63 - 1),
    site=st.text(max_size=200),
    weight=st.integers(0, 2**63 - 1),
    blob=st.binary(max_size=200),
    counts=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5).map(tuple),
)
def test_a_reply_survives_the_wire_and_the_ledger(
    round: int, site: str, weight: int, blob: bytes, counts: tuple[float, ...]
) -> None:
    reply = Reply("f" * 64, round, "ok", "", site, weight, blob, counts)
    received = unpack_reply(
        over_the_wire(pack_reply(reply)), fingerprint=reply.fingerprint, round=round
    )
    assert received == replace(reply, site=printable(site))
    assert reply_from_bytes(reply_to_bytes(reply)) == received


def test_a_message_is_one_record_and_at_most_one_array() -> None:
    record = pack_request(REQUEST)
    assert sorted(record) == ["adapter", "lorica"]
    assert list(record["adapter"]) == ["adapter"]
    assert list(pack_request(Request(PLAN, "run-1"))) == ["lorica"]


def changed(record: RecordDict, **fields: object) -> RecordDict:
    """The record with some fields changed; None removes one."""
    content = {**record["lorica"], **fields}
    kept = {key: value for key, value in content.items() if value is not None}
    others = {key: value for key, value in record.items() if key != "lorica"}
    return RecordDict({"lorica": ConfigRecord(kept), **others})


def open_request(record: RecordDict) -> Request:
    return unpack_request(over_the_wire(record))


def open_reply(record: RecordDict, fingerprint: str = PLAN.fingerprint, round: int = 3) -> Reply:
    return unpack_reply(over_the_wire(record), fingerprint=fingerprint, round=round)


@pytest.mark.parametrize("protocol", [None, 0, PROTOCOL + 1, str(PROTOCOL), b"1"])
def test_another_protocol_is_refused_first(protocol: object, refuses: Refuses) -> None:
    request = changed(pack_request(REQUEST), protocol=protocol, plan="not JSON")
    assert "protocol" in refuses(Code.MESSAGE_MALFORMED, lambda: open_request(request))
    reply = changed(pack_reply(REPLY), protocol=protocol, status="?")
    assert "protocol" in refuses(Code.MESSAGE_MALFORMED, lambda: open_reply(reply))


WRONG: list[object] = [None, b"bytes", 1.5, [1, 2], ["a"]]


@pytest.mark.parametrize("key", ["run", "plan", "fingerprint", "round"])
@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_a_request_with_a_field_missing_or_of_another_type_is_refused(
    key: str, value: object, refuses: Refuses
) -> None:
    record = changed(pack_request(REQUEST), **{key: value})
    assert f"'{key}'" in refuses(Code.MESSAGE_MALFORMED, lambda: open_request(record))


@pytest.mark.parametrize("key", ["status", "fingerprint", "round", "site", "weight"])
@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_a_reply_with_a_field_missing_or_of_another_type_is_refused(
    key: str, value: object, refuses: Refuses
) -> None:
    record = changed(pack_reply(REPLY), **{key: value})
    assert f"'{key}'" in refuses(Code.MESSAGE_MALFORMED, lambda: open_reply(record))


@pytest.mark.parametrize(
    "told",
    [(10.0, 11.0), (math.inf, 1.0), (10.0, -1.0), (math.nan, 1.0), (10, 4), ("10", "4")],
    ids=str,
)
def test_a_budget_that_cannot_be_is_refused(told: tuple[float, float], refuses: Refuses) -> None:
    fields = dict(zip(("budget", "budget_left"), told, strict=True))
    record = changed(pack_reply(REPLY), **fields)
    assert "budget" in refuses(Code.MESSAGE_MALFORMED, lambda: open_reply(record))
    half = changed(pack_reply(REPLY), budget=10.0)
    assert "budget" in refuses(Code.MESSAGE_MALFORMED, lambda: open_reply(half))


@pytest.mark.parametrize("value", [-1, -(2**62), True, "3"])
def test_counts_are_whole_numbers_from_zero(value: object, refuses: Refuses) -> None:
    for key in ("round", "weight"):
        record = changed(pack_reply(REPLY), **{key: value})
        assert f"'{key}'" in refuses(Code.MESSAGE_MALFORMED, lambda r=record: open_reply(r))
    record = changed(pack_request(REQUEST), round=value)
    assert "'round'" in refuses(Code.MESSAGE_MALFORMED, lambda: open_request(record))


def test_a_plan_that_does_not_match_its_fingerprint_is_refused(refuses: Refuses) -> None:
    stronger = PLAN.replace(privacy={"epsilon": 1.0})
    for record in (
        changed(pack_request(REQUEST), plan=stronger.canonical()),
        changed(pack_request(REQUEST), fingerprint=stronger.fingerprint),
        changed(pack_request(REQUEST), fingerprint=""),
    ):
        refuses(Code.PLAN_MISMATCH, lambda r=record: open_request(r))


@pytest.mark.parametrize(
    ("plan", "code"),
    [
        ("not JSON", Code.PLAN_UNREADABLE),
        ("[" * 100_000, Code.PLAN_UNREADABLE),
        ('{"privacy": {"epsilon": -1}}', Code.PLAN_BAD_VALUE),
        ('{"privacy": {"epsilom": 1}}', Code.PLAN_UNKNOWN_KEY),
        (f'{{"a": "{"x" * messages.MAX_PLAN_CHARACTERS}"}}', Code.MESSAGE_MALFORMED),
    ],
    ids=["no JSON", "nested", "impossible", "unknown key", "oversized"],
)
def test_a_plan_that_cannot_be_is_refused(plan: str, code: Code, refuses: Refuses) -> None:
    refuses(code, lambda: open_request(changed(pack_request(REQUEST), plan=plan)))


def test_replies_of_another_plan_or_round_are_refused(refuses: Refuses) -> None:
    record = pack_reply(REPLY)
    refuses(Code.PLAN_MISMATCH, lambda: open_reply(record, fingerprint="0" * 64))
    assert "round 3" in refuses(Code.MESSAGE_MALFORMED, lambda: open_reply(record, round=4))
    assert open_reply(record).weight == 1200


def test_a_status_that_is_neither_ok_nor_refused_is_refused(refuses: Refuses) -> None:
    for status in ("", "OK", "error"):
        record = changed(pack_reply(REPLY), status=status)
        assert "status" in refuses(Code.MESSAGE_MALFORMED, lambda r=record: open_reply(r))


def with_arrays(record: RecordDict, arrays: dict[str, Array]) -> RecordDict:
    return RecordDict({"lorica": record["lorica"], "adapter": ArrayRecord(arrays)})


def blob_array(stype: str = "safetensors", data: bytes = b"abc") -> Array:
    return Array(dtype="uint8", shape=(len(data),), stype=stype, data=data)


class Bomb:
    """Pickled, it runs code when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle from the wire was loaded",))


@pytest.mark.parametrize(
    "arrays",
    [
        {"adapter": blob_array("pickle", pickle.dumps(Bomb()))},
        {"adapter": blob_array("numpy.ndarray", pickle.dumps(Bomb()))},
        {"adapter": blob_array("")},
        {"adapter": Array(np.arange(3))},
        {"adapter": blob_array(), "more": blob_array()},
        {"other": blob_array()},
        {},
    ],
    ids=["pickle", "pickle as numpy", "no type", "numpy", "two arrays", "another name", "none"],
)
def test_anything_but_one_safetensors_array_is_refused(
    arrays: dict[str, Array], refuses: Refuses
) -> None:
    for record, read in ((pack_request(REQUEST), open_request), (pack_reply(REPLY), open_reply)):
        wrong = with_arrays(record, arrays)
        refuses(Code.MESSAGE_MALFORMED, lambda read=read, wrong=wrong: read(wrong))


def test_a_blob_over_the_limit_is_refused(
    monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.setattr(message_fields, "MAX_BLOB_BYTES", 100)
    unpack_request(pack_request(Request(PLAN, "run-1", 1, bytes(100))))
    record = pack_request(Request(PLAN, "run-1", 1, bytes(101)))
    refuses(Code.MESSAGE_MALFORMED, lambda: unpack_request(record))


@pytest.mark.parametrize(
    "record",
    [
        RecordDict({}),
        RecordDict({"lorica": MetricRecord({"protocol": 1})}),
        RecordDict({"lorica": ConfigRecord({})}),
        RecordDict({"lorica": pack_reply(REPLY)["lorica"], "adapter": ConfigRecord({})}),
    ],
    ids=["empty", "metrics", "no fields", "a config as adapter"],
)
def test_records_of_another_shape_are_refused(record: RecordDict, refuses: Refuses) -> None:
    refuses(Code.MESSAGE_MALFORMED, lambda: open_reply(record))
    refuses(Code.MESSAGE_MALFORMED, lambda: open_request(record))


@pytest.mark.parametrize(
    "error",
    [
        ValueError(CANARY),
        KeyError(CANARY),
        UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY),
        LoricaError(Code.DATA_UNKNOWN_LABEL, CANARY, mend=CANARY),
        ExceptionGroup(CANARY, [LoricaError(Code.DATA_COLUMN, CANARY)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_never_carries_the_detail(error: Exception) -> None:
    error.__cause__ = RuntimeError(CANARY)
    error.add_note(CANARY)
    reply = refusal(error, fingerprint=PLAN.fingerprint, round=3, site="ward 7")
    wire = as_bytes(pack_reply(reply))
    assert b"Jane" not in wire and b"ward7" not in wire
    received = open_reply(pack_reply(reply))
    assert (received.status, received.site, received.blob) == ("refused", "ward 7", b"")
    code = error.code if isinstance(error, LoricaError) else Code.UNEXPECTED
    assert received.reason == f"{code.value}: {code.entry.title}"


@pytest.mark.parametrize(
    "counts",
    [
        MetricRecord({"counts": [1.0, math.nan]}),
        MetricRecord({"counts": [math.inf]}),
        MetricRecord({"counts": 3.0}),
        MetricRecord({"other": [1.0]}),
        ConfigRecord({"counts": [1.0]}),
    ],
    ids=["nan", "inf", "a number", "another name", "a config"],
)
def test_counts_that_are_no_finite_numbers_are_refused(counts: object, refuses: Refuses) -> None:
    record = RecordDict({"lorica": pack_reply(REPLY)["lorica"], "counts": counts})
    assert "counts" in refuses(Code.MESSAGE_MALFORMED, lambda: open_reply(record))


def test_a_refusal_is_read_even_when_the_site_could_not_read_the_plan_or_round() -> None:
    reply = open_reply(pack_reply(refusal(ValueError("x"))), fingerprint="f" * 64, round=9)
    assert reply.status == "refused"


def test_long_texts_from_a_site_are_cut() -> None:
    reply = open_reply(changed(pack_reply(REPLY), site="s" * 10_000))
    assert len(reply.site) == 200


def test_the_blob_is_kept_out_of_printed_replies() -> None:
    assert "update" not in repr(REPLY)


def test_the_name_of_a_site_cannot_steer_a_terminal() -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07\r\n\u202eward\x9b"
    reply = replace(REPLY, site=hostile)
    received = unpack_reply(pack_reply(reply), fingerprint=reply.fingerprint, round=reply.round)
    assert received.site.isprintable()
    assert "ward" in received.site


@pytest.mark.parametrize(
    "code", ["LOR-901: x", "LOR-9", "lor-901", "\x1b[2J", "", "LOR-901\n", 901]
)
def test_a_refusal_whose_code_is_none_is_malformed(code: object, refuses: Refuses) -> None:
    record = changed(pack_reply(refusal(ValueError("x"), round=3)), code=code)
    refuses(Code.MESSAGE_MALFORMED, lambda: open_reply(record))


def test_an_update_with_a_code_is_malformed(refuses: Refuses) -> None:
    record = changed(pack_reply(REPLY), code="LOR-901")
    refuses(Code.MESSAGE_MALFORMED, lambda: open_reply(record))


def test_a_code_of_a_newer_version_is_told_without_its_sentence() -> None:
    record = changed(pack_reply(refusal(ValueError("x"), round=3)), code="LOR-999")
    assert open_reply(record).reason.startswith("LOR-999: a reason that this version")
    assert refusal_code(record) == "LOR-999"
    assert refusal_code(pack_reply(REPLY)) == refusal_code(RecordDict()) == ""


def test_what_is_refused_is_told_by_the_code_and_never_by_words(refuses: Refuses) -> None:
    """A reason in words, as version 1 had it, is neither sent nor read."""
    reply = refusal(LoricaError(Code.TRAINER_DOWN, "x"), round=3)
    record = pack_reply(reply)
    assert dict(record["lorica"])["code"] == "LOR-711" and "reason" not in record["lorica"]
    old = changed(record, code=None, reason="LOR-711: The site's trainer is not running.")
    refuses(Code.MESSAGE_MALFORMED, lambda: open_reply(old))
