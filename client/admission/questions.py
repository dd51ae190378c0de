"""How many questions plans may put to the records by asking whether the site takes part.

A site takes part in a plan only if its records fit it: every label is one of the plan's, every
target lies within the plan's bounds, every text has tokens. So each answer, spending no ε and
without noise, tells one fact about the records; with twenty plans that differ in a bound, a
coordinator would have the largest target to six digits.

Formal statement:
    Of the plans of all runs, over the life of the file, at most ``most`` differ in the parts that
    the records are compared with (:func:`question`). What refusals tell of the records is thus
    one of at most 2^most outcomes; further plans are refused before the records are looked at,
    and that refusal depends on earlier plans alone. The number is written before the records are
    compared, so that no crash gives a question back.

Where people decide about every run (:mod:`lorica.client.admission.consent`), they decide about
this, too.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors, write_atomically
from lorica.common.plan import RunPlan


class Questions:
    """The questions that were put so far, in a file beside the ledger."""

    def __init__(self, file: Path, most: int) -> None:
        """
        Args:
            file: where they are kept; made with the first.
            most: how many different ones there may be.
        """
        self._file, self._most = file, most

    def ask(self, plan: RunPlan) -> None:
        """Return if the records may be compared with the plan; count it if it asks anew.

        Raises:
            LoricaError: LOR-408 there were as many as the policy allows, or what was asked is
                not known any more; LOR-60x the file cannot
                be written.
        """
        asked, key = self._read(), question(plan)
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


def question(plan: RunPlan) -> str:
    """Fingerprint of what records are compared with: task, table, backbone and text length."""
    parts = [
        plan.task.model_dump(mode="json"),
        plan.table.model_dump(mode="json"),
        plan.backbone.model_dump(mode="json"),
        plan.training.max_length,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
