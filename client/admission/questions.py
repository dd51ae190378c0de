"""How many questions plans may put to the records by asking whether the site takes part.

A site takes part in a plan only if its records fit it: every label is one of the plan's, every
target lies within the plan's bounds, every text has tokens. So each answer, spending no ε and
without noise, tells one fact about the records; with twenty plans that differ in a bound, a
coordinator would have the largest target to six digits.

Formal statement:
    Of the plans of all runs, over the life of the file, at most ``most`` differ in the parts that
    the records are compared with (:func:`question`), the same parts put to changed records
    counted anew. Every answer is one bit (:meth:`lorica.client.admission.gate.Admission.compare`),
    so what refusals tell of the records is one of at most 2^most outcomes; further plans are
    refused before the records are looked at, and that refusal depends on earlier plans alone. The
    number is written before the records are compared, so that no crash gives a question back.

Where people decide about every run (:mod:`lorica.client.admission.consent`), they decide about
this, too.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors, write_atomically
from lorica.common.plan import RunPlan

if TYPE_CHECKING:
    from lorica.common.data.records import Records


class Questions:
    """The questions that were put so far, in a file beside the ledger."""

    def __init__(self, file: Path, most: int) -> None:
        """
        Args:
            file: where they are kept; made with the first.
            most: how many different ones there may be.
        """
        self._file, self._most = file, most
        self._known: tuple[Records, str] | None = None

    def ask(self, plan: RunPlan, records: Records) -> None:
        """Return if the records may be compared with the plan; count it if it asks anew.

        Raises:
            LoricaError: LOR-408 there were as many as the policy allows, or what was asked is
                not known any more; LOR-60x the file cannot
                be written.
        """
        asked, key = self._read(), self._key(plan, records)
        if key in asked:
            return
        if len(asked) >= self._most:
            raise LoricaError(
                Code.POLICY_REFUSED,
                f"Plans have put {len(asked)} different questions to the records, and "
                f"policy.questions allows {self._most}.",
                mend="Let somebody look at the plan. If it may be answered, raise "
                f"policy.questions; {self._file} lists what was asked and when.",
            )
        labels = plan.task.labels
        asked[key] = (
            f"{datetime.now(UTC).isoformat(timespec='seconds')} {plan.task.kind}, "
            f"{len(labels)} labels"
        )
        write_atomically(self._file, json.dumps(asked, indent=1) + "\n", mode=0o600)

    def _key(self, plan: RunPlan, records: Records) -> str:
        """Of a question to these very records: changed ones may give another answer."""
        if self._known is None or self._known[0] is not records:
            self._known = records, content_digest(records)
        return hashlib.sha256(f"{question(plan)} {self._known[1]}".encode()).hexdigest()

    def _read(self) -> dict[str, str]:
        with storage_errors(self._file):
            if not self._file.exists():
                return {}
            text = self._file.read_text(encoding="utf-8", errors="replace")
        try:
            found = json.loads(text)
            if isinstance(found, dict) and all(isinstance(said, str) for said in found.values()):
                return found
        except ValueError:
            pass
        raise LoricaError(
            Code.POLICY_REFUSED,
            f"{self._file} is damaged: what plans have asked so far is not known.",
            mend="Restore the file, or remove it if no plan has asked yet.",
        )


def content_digest(records: Records) -> str:
    """SHA-256 of all that plans are compared with: texts, targets, cells; in any order."""
    total = 0
    columns = [records.texts, records.labels]
    if records.table is not None:
        columns += [records.table.cells(name) for name in records.table.names]
    for row in zip(*columns, strict=True):
        digest = hashlib.sha256(json.dumps(row, default=str).encode()).digest()
        total = (total + int.from_bytes(digest)) % 2**256
    return f"{total:064x}"


def question(plan: RunPlan) -> str:
    """Fingerprint of what records are compared with: task, table, backbone and text length."""
    parts = [
        plan.task.model_dump(mode="json"),
        plan.table.model_dump(mode="json"),
        plan.backbone.model_dump(mode="json"),
        plan.training.max_length,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
