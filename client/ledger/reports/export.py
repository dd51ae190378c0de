"""A ledger as JSON (whole, verifiable elsewhere) or CSV (one row per mechanism charged)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

from lorica.client.ledger.chain import Entry, time_out
from lorica.client.ledger.charge import number_out
from lorica.client.ledger.history import History
from lorica.common.display.csv import harmless

COLUMNS = (
    "number",
    "time",
    "run",
    "round",
    "kind",
    "sigma",
    "q",
    "steps",
    "response",
    "unit",
    "fingerprint",
    "answered",
    "epsilon_lifetime",
    "epsilon_run",
)
"""Columns of the CSV; "response" is the ε of a bit by randomised response, else empty; the other ε
are totals at the ledger's δ once the charge was written."""


def as_json(history: History, entries: Iterable[Entry]) -> str:
    """The whole chain, with its newest number and hash: a witness to keep elsewhere.

    Each entry is given as the exact text that its hash covers: hash = SHA-256(previous hash,
    line feed, body), the first entry's previous hash being 64 zeros.
    """
    content: dict[str, Any] = {
        "format": "lorica-ledger-1",
        "ledger": history.ledger,
        "data_set": history.data_set,
        "unit": history.unit,
        "delta": history.delta,
        "head": {"number": history.count, "hash": history.head},
        "entries": [{"body": entry.body, "hash": entry.hash} for entry in entries],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def as_csv(history: History) -> str:
    """One row per mechanism of every charge, in chain order.

    Texts that a spreadsheet would run as formulas are given a leading apostrophe: run ids come
    from coordinators. The JSON has them unaltered.
    """
    paid = {done.charge for done in history.done.values()}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for charged in history.charges:
        charge = charged.charge
        for event in charge.events:
            writer.writerow(
                [
                    charged.number,
                    time_out(charged.time),
                    harmless(charge.run),
                    charge.round,
                    harmless(charge.kind),
                    repr(event.noise_multiplier),
                    repr(event.sample_rate),
                    event.steps,
                    repr(event.response) if event.response else "",
                    harmless(charge.unit),
                    charge.fingerprint,
                    "yes" if charged.number in paid else "no",
                    number_out(charged.spent.lifetime),
                    number_out(charged.spent.run),
                ]
            )
    return file.getvalue()
