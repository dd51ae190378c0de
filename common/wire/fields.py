"""What a message holds, read with distrust: every part has the type and the bounds that it must."""

from __future__ import annotations

import math

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from lorica.common.errors import Code, LoricaError

PROTOCOL = 2
"""Version of the wire format; a peer with another one is refused. The number format of updates is
part of the plan (``wire.update``), not of this number: a peer that does not know the key refuses
the plan (LOR-102, LOR-104) before anything is computed."""

MAX_BLOB_BYTES = 2_000_000_000

CONFIG, ADAPTER, COUNTS, SEALED = "lorica", "adapter", "counts", "sealed"
"""Names of a message's records."""


def fields_of(record: RecordDict) -> ConfigRecord:
    """The record of small fields. Raises LOR-501."""
    fields = record.get(CONFIG)
    if not isinstance(fields, ConfigRecord):
        raise LoricaError(Code.MESSAGE_MALFORMED, "A message lacks its 'lorica' record.")
    return fields


def same_protocol(fields: ConfigRecord) -> None:
    """Return if the peer speaks this installation's wire format. Raises LOR-501."""
    if fields.get("protocol") != PROTOCOL:
        raise LoricaError(
            Code.MESSAGE_MALFORMED,
            f"A message speaks protocol {fields.get('protocol')!r:.30}, this installation "
            f"{PROTOCOL}.",
        )


def text_of(fields: ConfigRecord, key: str, default: str | None = None) -> str:
    """A field that is text. Raises LOR-501."""
    value = fields.get(key, default)
    if not isinstance(value, str):
        raise LoricaError(Code.MESSAGE_MALFORMED, f"A message's field '{key}' is not text.")
    return value


def count_of(fields: ConfigRecord, key: str, default: int | None = None) -> int:
    """A field that is a whole number from 0. Raises LOR-501."""
    value = fields.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LoricaError(
            Code.MESSAGE_MALFORMED, f"A message's field '{key}' is not a whole number from 0."
        )
    return value


def budget_of(fields: ConfigRecord) -> tuple[float, float] | None:
    """The declared budget and what is left of it, if they are there. Raises LOR-501."""
    values = fields.get("budget"), fields.get("budget_left")
    if values == (None, None):
        return None
    whole, left = values
    if not (isinstance(whole, float) and isinstance(left, float) and 0 <= left <= whole < math.inf):
        raise LoricaError(
            Code.MESSAGE_MALFORMED, "A message's budget is not what is left of a finite one."
        )
    return whole, left


STYPES = {ADAPTER: "safetensors", SEALED: "bytes"}
"""Number format of the one array in each of these records."""


def blob_of(record: RecordDict, name: str = ADAPTER) -> bytes:
    """The bytes of the adapter, or of a part in a sealed sum; empty where none travel. Raises
    LOR-501."""
    if name not in record:
        return b""
    arrays = record[name]
    if not isinstance(arrays, ArrayRecord) or list(arrays) != [name]:
        raise LoricaError(
            Code.MESSAGE_MALFORMED, f"A message holds more arrays than the one of '{name}'."
        )
    array = arrays[name]
    if array.stype != STYPES[name] or len(array.data) > MAX_BLOB_BYTES:
        raise LoricaError(
            Code.MESSAGE_MALFORMED,
            f"A message's '{name}' is not one blob of {STYPES[name]} in bounds.",
        )
    return bytes(array.data)


def counts_of(record: RecordDict) -> tuple[float, ...]:
    """Noised counts; empty where none travel. Raises LOR-501."""
    held = record.get(COUNTS)
    if held is None:
        return ()
    values = held.get(COUNTS) if isinstance(held, MetricRecord) else None
    if not isinstance(values, list) or not all(math.isfinite(value) for value in values):
        raise LoricaError(Code.MESSAGE_MALFORMED, "A message's counts are not a list of numbers.")
    return tuple(float(value) for value in values)
