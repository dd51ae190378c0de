"""The wire: what a message between coordinator and site holds.

Every message is a Flower ``RecordDict`` with one ``ConfigRecord`` "lorica" (small, public
fields) and, where an adapter travels, one ``ArrayRecord`` "adapter" with one array: the
safetensors blob of :mod:`lorica.common.adapter.lora`; an evaluation's reply has one
``MetricRecord``
"counts". Sealed sums (``privacy.trust = "sum"``) have an ``ArrayRecord`` "sealed" of one array
in either direction. This module needs neither torch nor data: the thin ClientApp
forwards what it packs.

========== =========================================== ===================================
message     coordinator -> site                         site -> coordinator
========== =========================================== ===================================
capabilities plan, fingerprint                          site, weight (declared size), version,
                                                        budget (where it is declared)
train        plan, fingerprint, round, adapter          round, weight, adapter (update)
evaluate     plan, fingerprint, round, adapter          round, weight, counts (noised)
========== =========================================== ===================================

A reply also has ``head`` and a request the ``head`` that the site's last reply had, where the site
keeps a ledger in a file. Every request also has ``coordinator``, ``signature``, ``time``, ``site``
and ``nonce`` (:mod:`lorica.common.wire.signing`), empty or 0 without a key. Every reply of a
site that is part of a federation has ``signature`` (:mod:`lorica.common.wire.sealing`). Every reply
also has ``status`` ("ok" or "refused"), the fingerprint, and, when refused, ``code``: a code of the
error catalogue, nothing else. The sentence that people read is the receiver's own.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from lorica.common.display.text import printable
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.io import from_canonical
from lorica.common.wire.fields import (
    ADAPTER,
    CONFIG,
    COUNTS,
    PROTOCOL,
    SEALED,
    STYPES,
    blob_of,
    budget_of,
    count_of,
    counts_of,
    fields_of,
    same_protocol,
    text_of,
)

MAX_PLAN_CHARACTERS = 4_000_000

Kind = Literal["query.capabilities", "train", "evaluate"]
"""What is asked of a site, as Flower's type of the message."""

CAPABILITIES: Kind = "query.capabilities"
TRAIN: Literal["train"] = "train"
EVALUATE: Literal["evaluate"] = "evaluate"

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_CODE = re.compile(r"LOR-[0-9]{3}")
_KNOWN = frozenset(code.value for code in Code)
_MOST_ROUND = 1_000_000
_MOST_HEAD = 300  # characters
_MOST_SIGNATURE = 400  # hex digits


@dataclass(frozen=True)
class Request:
    """What the coordinator asks of a site."""

    plan: RunPlan
    run: str
    """Lorica's run id, the same across resumes."""
    round: int = 0
    """Round, from 1; 0 for messages outside rounds."""
    blob: bytes = b""
    """Global adapter state as safetensors; empty for queries."""
    coordinator: str = ""
    """Public key of the coordinator that signed, 64 hex digits; empty when unsigned."""
    signature: str = field(default="", repr=False)
    """Its signature (:mod:`lorica.common.wire.signing`), 128 hex digits; empty when unsigned."""
    time: int = 0
    """When it was signed, seconds since 1970 in UTC; 0 when unsigned."""
    site: str = ""
    """Name of the site that it is for; empty when unsigned, or before the name is known."""
    nonce: str = ""
    """Drawn for every request that is signed, 32 hex digits; empty when unsigned."""
    head: str = field(default="", repr=False)
    """The newest head of the site's ledger that the coordinator holds; the site's own seal is on
    it, so no signature covers it. Empty when it holds none."""
    sealed: bytes = field(default=b"", repr=False)
    """What a sealed sum asks for (:mod:`lorica.common.secure_sum.messages`); else empty."""


@dataclass(frozen=True)
class Reply:
    """What a site answers: an update, or a refusal with a public reason."""

    fingerprint: str
    round: int = 0
    status: Literal["ok", "refused"] = "ok"
    code: str = ""
    """Why it refuses, a code such as "LOR-408"; empty when ok."""
    site: str = ""
    """The site's public name."""
    weight: int = 0
    """The site's declared, public number of units; 0 when it declares none."""
    blob: bytes = field(default=b"", repr=False)
    """Update as safetensors; empty when refused and for queries."""
    counts: tuple[float, ...] = ()
    """Noised counts of an evaluation (:mod:`lorica.common.tasks.noised_metrics`), else empty."""
    version: str = ""
    """Version of Lorica at the site; empty when it does not say."""
    budget: tuple[float, float] | None = None
    """The lifetime budget of the site's data, ε, and what is left of it, if it declares them."""
    head: str = field(default="", repr=False)
    """The head of the site's ledger, sealed by the site, for the coordinator to keep and return
    (:mod:`lorica.client.ledger.head`)."""
    sealed: bytes = field(default=b"", repr=False)
    """The site's part in a sealed sum, or its card for one; else empty."""
    signature: str = field(default="", repr=False)
    """The site's (:mod:`lorica.common.wire.sealing`), hex; empty where it has no key."""

    @property
    def reason(self) -> str:
        """Why it refuses, code and title in this installation's own words; empty when ok."""
        if self.code and self.code not in _KNOWN:
            return f"{self.code}: a reason that this version of Lorica does not know."
        return Code(self.code).public_reason if self.code else ""


def pack_request(request: Request) -> RecordDict:
    """The request as a Flower record."""
    fields: dict[str, str | int] = {
        "protocol": PROTOCOL,
        "run": request.run,
        "round": request.round,
        "plan": request.plan.canonical(),
        "fingerprint": request.plan.fingerprint,
        "coordinator": request.coordinator,
        "signature": request.signature,
        "time": request.time,
        "site": request.site,
        "nonce": request.nonce,
    }
    if request.head:
        fields["head"] = request.head
    return _pack(fields, request.blob, request.sealed)


def with_head(packed: RecordDict, head: str) -> RecordDict:
    """A packed request with the head that one site is to see; the adapter is shared."""
    if not head:
        return packed
    fields = ConfigRecord({**fields_of(packed), "head": head})
    return RecordDict({**packed, CONFIG: fields})


def unpack_request(record: RecordDict) -> Request:
    """The request in a Flower record, checked: the plan must match its fingerprint.

    Raises:
        LoricaError: LOR-501 malformed, LOR-104 fingerprint of another plan, LOR-10x bad plan.
    """
    fields = fields_of(record)
    same_protocol(fields)
    text = text_of(fields, "plan")
    if len(text) > MAX_PLAN_CHARACTERS:
        raise LoricaError(Code.MESSAGE_MALFORMED, f"The plan has {len(text):,} characters.")
    plan = from_canonical(text)
    if plan.fingerprint != text_of(fields, "fingerprint"):
        raise LoricaError(
            Code.PLAN_MISMATCH, "The plan in the message does not match its fingerprint."
        )
    return Request(
        plan,
        text_of(fields, "run"),
        count_of(fields, "round"),
        blob_of(record),
        text_of(fields, "coordinator", default=""),
        text_of(fields, "signature", default=""),
        count_of(fields, "time", default=0),
        site=text_of(fields, "site", default=""),
        nonce=text_of(fields, "nonce", default=""),
        head=text_of(fields, "head", default="")[:_MOST_HEAD],
        sealed=blob_of(record, SEALED),
    )


def pack_reply(reply: Reply) -> RecordDict:
    """The reply as a Flower record."""
    fields: dict[str, str | int | float] = {
        "protocol": PROTOCOL,
        "status": reply.status,
        "fingerprint": reply.fingerprint,
        "round": reply.round,
        "site": reply.site,
        "weight": reply.weight,
    }
    if reply.code:
        fields["code"] = reply.code
    if reply.version:
        fields["version"] = reply.version
    if reply.signature:
        fields["signature"] = reply.signature
    if reply.budget is not None:
        fields["budget"], fields["budget_left"] = reply.budget
    if reply.head:
        fields["head"] = reply.head
    record = _pack(fields, reply.blob, reply.sealed)
    if reply.counts:
        record[COUNTS] = MetricRecord({COUNTS: list(reply.counts)})
    return record


def unpack_reply(record: RecordDict, *, fingerprint: str, round: int) -> Reply:
    """The reply in a Flower record, checked against the request it answers.

    The name comes from the site and ends on operators' screens: what could steer a terminal is
    replaced.

    Raises:
        LoricaError: LOR-501 malformed or of another round, LOR-104 of another plan.
    """
    same_protocol(fields_of(record))
    return require_answer(_reply_in(record), fingerprint=fingerprint, round=round)


def require_answer(reply: Reply, *, fingerprint: str, round: int) -> Reply:
    """The reply, if it answers a request of this plan and round.

    Raises:
        LoricaError: LOR-501 of another round, LOR-104 of another plan.
    """
    if reply.fingerprint != fingerprint and reply.status == "ok":
        raise LoricaError(Code.PLAN_MISMATCH, "A reply belongs to another plan.")
    if reply.round != round and reply.status == "ok":
        raise LoricaError(
            Code.MESSAGE_MALFORMED, f"A reply belongs to round {reply.round}, not {round}."
        )
    return reply


def name_shown(name: str) -> str:
    """A site's name as a coordinator takes it over from a reply."""
    return printable(name[:200])


def _reply_in(record: RecordDict) -> Reply:
    """The reply in a record, whose parts have the types and bounds that they must."""
    fields = fields_of(record)
    status = text_of(fields, "status")
    if status not in ("ok", "refused"):
        raise LoricaError(Code.MESSAGE_MALFORMED, "A reply's status is neither ok nor refused.")
    code = text_of(fields, "code", default="")
    if bool(code) != (status == "refused") or (code and not _CODE.fullmatch(code)):
        raise LoricaError(
            Code.MESSAGE_MALFORMED,
            "A refusal has no code, or another reply has one.",
        )
    return Reply(
        fingerprint=text_of(fields, "fingerprint"),
        round=count_of(fields, "round"),
        status="ok" if status == "ok" else "refused",
        code=code,
        site=name_shown(text_of(fields, "site")),
        weight=count_of(fields, "weight"),
        blob=blob_of(record),
        counts=counts_of(record),
        version=printable(text_of(fields, "version", default="")[:50]),
        budget=budget_of(fields),
        signature=text_of(fields, "signature", default="")[:_MOST_SIGNATURE],
        head=printable(text_of(fields, "head", default="")[:_MOST_HEAD]),
        sealed=blob_of(record, SEALED),
    )


def record_to_bytes(record: RecordDict) -> bytes:
    """A packed request or reply as bytes."""
    return bytes(recorddict_to_proto(record).SerializeToString())


def record_from_bytes(content: bytes) -> RecordDict:
    """The inverse of :func:`record_to_bytes`; raises errors of many kinds for hostile bytes."""
    return recorddict_from_proto(ProtoRecordDict.FromString(content))


def reply_to_bytes(reply: Reply) -> bytes:
    """The packed reply as bytes, for keeping."""
    return record_to_bytes(pack_reply(reply))


def reply_from_bytes(content: bytes) -> Reply:
    """The inverse of :func:`reply_to_bytes`, whichever version of the wire format kept it."""
    return _reply_in(record_from_bytes(content))


def reply_to_memory(reply: Reply) -> bytes:
    """The reply as bytes for keeping in this very process, where no other version reads them: made
    in a fraction of the time of :func:`reply_to_bytes`."""
    small = {name: getattr(reply, name) for name in _SMALL}
    head = json.dumps(small).encode()
    sizes = len(head).to_bytes(8), len(reply.blob).to_bytes(8)
    return b"".join((*sizes, head, reply.blob, reply.sealed))


def reply_from_memory(content: bytes) -> Reply:
    """The inverse of :func:`reply_to_memory`."""
    head, blob = (int.from_bytes(content[start : start + 8]) for start in (0, 8))
    small = json.loads(content[16 : 16 + head])
    small["counts"] = tuple(small["counts"])
    small["budget"] = small["budget"] and tuple(small["budget"])
    rest = content[16 + head :]
    return Reply(**small, blob=rest[:blob], sealed=rest[blob:])


_SMALL = [one.name for one in dataclasses.fields(Reply) if one.name not in ("blob", "sealed")]


def refusal(
    error: BaseException, *, fingerprint: str = "", round: int = 0, site: str = ""
) -> Reply:
    """The reply that refuses because of ``error``; carries its code alone."""
    code = error.code if isinstance(error, LoricaError) else Code.UNEXPECTED
    return Reply(fingerprint, round, "refused", code.value, site)


def is_refusal(record: RecordDict) -> bool:
    """Whether a packed reply refuses."""
    fields = record.get(CONFIG)
    return isinstance(fields, ConfigRecord) and fields.get("status") == "refused"


def refusal_code(record: RecordDict) -> str:
    """The code of a packed refusal, unchecked; empty for anything else."""
    fields = record.get(CONFIG)
    code = fields.get("code") if isinstance(fields, ConfigRecord) else None
    return code if is_refusal(record) and isinstance(code, str) else ""


def named_in(record: RecordDict) -> tuple[str, int]:
    """Fingerprint and round that a packed request names, unchecked but for their form; ("", 0)
    where it names none."""
    fields = record.get(CONFIG)
    if not isinstance(fields, ConfigRecord):
        return "", 0
    fingerprint, round = fields.get("fingerprint"), fields.get("round")
    if not (isinstance(fingerprint, str) and _FINGERPRINT.fullmatch(fingerprint)):
        return "", 0
    counts = isinstance(round, int) and not isinstance(round, bool) and 0 <= round <= _MOST_ROUND
    return fingerprint, round if counts else 0


def _pack(fields: Mapping[str, str | int | float], blob: bytes, sealed: bytes) -> RecordDict:
    record = RecordDict({CONFIG: ConfigRecord(dict(fields))})
    for name, content in ((ADAPTER, blob), (SEALED, sealed)):
        if content:
            size = (len(content),)
            array = Array(dtype="uint8", shape=size, stype=STYPES[name], data=content)
            record[name] = ArrayRecord({name: array})
    return record
