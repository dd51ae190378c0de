"""Which sums a site masked its vector for, and which survivors it agreed to: said once, kept.

What protects a site's vector is that it never says two things about one round. So both are written
durably before the answer leaves, and the first word counts for ever.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

from lorica.common.machine.files import create_atomically, storage_errors
from lorica.common.secure_sum.context import canonical


class SumMemory(Protocol):
    """What was said first about a round."""

    def first(self, run: str, round: int, kind: str, about: str, said: bytes) -> bytes:
        """What was said first about this: ``said``, durably, if nothing was before.

        Args:
            run: Lorica's run id.
            round: its number.
            kind: what is summed.
            about: "sum" or "survivors".
            said: up to a few kilobytes.

        Raises:
            LoricaError: LOR-60x it cannot be kept; nothing may leave then.
        """
        ...


class KeptInMemory:
    """For a site that lives as long as its process: simulations."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, int, str, str], bytes] = {}

    def first(self, run: str, round: int, kind: str, about: str, said: bytes) -> bytes:
        return self._said.setdefault((run, round, kind, about), said)


class KeptInFolder:
    """One small file for each, in a folder that belongs beside the ledger."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is made with mode 0700 when it is first needed."""
        self._folder = folder

    def first(self, run: str, round: int, kind: str, about: str, said: bytes) -> bytes:
        name = hashlib.sha256(canonical(run, round, kind, about)).hexdigest()
        path = self._folder / name
        with storage_errors(path):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if create_atomically(path, said, mode=0o600):
            return said
        with storage_errors(path):
            return path.read_bytes()
