"""The newest head of every site's ledger, kept for the sites: each gets its own back.

A site that is asked with a head that its ledger does not contain knows that an older copy of the
ledger was put in its place, and answers nothing. The coordinator can neither make heads nor read
more in them than a number; that it returns them is of use to the sites alone.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from lorica.common.machine.files import write_atomically

FILE = "heads.json"


class Heads:
    """Heads by site; in a file, they outlive the run."""

    def __init__(self, path: Path | None) -> None:
        """``path``: the file; None keeps them for this process's lifetime."""
        self._path = path
        self._heads: dict[str, str] = {}
        self._load()

    def newest(self, site: str) -> str:
        """A site's newest head; empty where none came."""
        return self._heads.get(site, "")

    def keep(self, site: str, head: str) -> None:
        """Keep a head that came with a site's reply, unless it is older than the one that is kept.

        Raises:
            LoricaError: LOR-60x the file cannot be written.
        """
        if not head or head == self.newest(site) or _number(head) < _number(self.newest(site)):
            return
        self._load()  # another run may have written meanwhile
        self._heads[site] = max(head, self.newest(site), key=_number)
        if self._path is not None:
            write_atomically(self._path, json.dumps(self._heads, indent=1) + "\n")

    def _load(self) -> None:
        if self._path is None:
            return
        with contextlib.suppress(OSError, ValueError, TypeError):
            found = dict(json.loads(self._path.read_text(encoding="utf-8")))
            for site, head in found.items():
                if _number(str(head)) > _number(self.newest(str(site))):
                    self._heads[str(site)] = str(head)


def _number(head: str) -> int:
    parts = head.split(":")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdecimal() else -1
