"""What one sum is: everything that its keys and signatures are bound to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

_DOMAIN = "lorica secure sum 1"


@dataclass(frozen=True)
class SumContext:
    """One sum of one run. Two sums that differ in anything have unrelated masks."""

    run: str
    """Lorica's run id."""
    fingerprint: str
    """Of the plan."""
    round: int
    """Its number, from 1."""
    kind: str
    """What is summed: "train", "evaluate"."""
    roster: str
    """Hash of the roster of those who are asked (:mod:`lorica.common.secure_sum.roster`)."""
    threshold: int
    """Fewest survivors."""
    values: int
    """Length of the vectors."""
    bits: int
    """They are added modulo 2^bits."""

    @property
    def digest(self) -> bytes:
        """SHA-256 of all of it, 32 bytes."""
        return hashlib.sha256(
            canonical(
                _DOMAIN,
                self.run,
                self.fingerprint,
                self.round,
                self.kind,
                self.roster,
                self.threshold,
                self.values,
                self.bits,
            )
        ).digest()


def canonical(*fields: str | int | list[str]) -> bytes:
    """A JSON list: another byte string for every other list of fields."""
    return json.dumps(list(fields), separators=(",", ":")).encode("ascii")
