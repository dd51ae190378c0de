"""Units that the site no longer uses: a list beside its ledger, by which records are left out.

The list holds no names. A unit is there as HMAC-SHA256 of its name under a salt of the list's own,
so that who sees the file learns who is on it only by trying names. It is readable by its owner
alone.

Formal guarantee:
    Leaving out a fixed set of names maps every data set to one without those units, on each unit
    alone: neighbours stay neighbours, so every (ε, δ) for what is left is one for the whole. What
    runs released before stays released: its (ε, δ) bounds what it tells of a unit, and no later
    removal makes that less.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lorica.client.config.site import SiteConfig
from lorica.common.data.names.normal import id_form
from lorica.common.data.records import UNNAMED, Records
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors, write_atomically

NAME = "forgotten.json"
_SALT_BYTES = 32


@dataclass(frozen=True)
class Forgotten:
    """Who is on a site's list."""

    path: Path
    salt: str
    """Hex."""
    hashes: frozenset[str] = field(default_factory=frozenset)

    def __len__(self) -> int:
        return len(self.hashes)

    def has(self, unit: str) -> bool:
        """Whether a unit of this name is left out."""
        return self._hash(unit) in self.hashes

    def add(self, units: Iterable[str]) -> Forgotten:
        """The list with these units, written whole or not at all. Raises LOR-601, LOR-602."""
        hashes = self.hashes | {self._hash(unit) for unit in units}
        content = {"salt": self.salt, "units": sorted(hashes)}
        write_atomically(self.path, json.dumps(content, indent=1) + "\n", mode=0o600)
        return Forgotten(self.path, self.salt, frozenset(hashes))

    def without(self, parts: Iterable[Records]) -> Iterator[Records]:
        """Records of all other units."""
        if not self.hashes:
            yield from parts
            return
        for part in parts:
            names = set(part.units)
            left_out = {n for n in names if not n.startswith(UNNAMED) and self.has(n)}
            if not left_out:
                yield part
                continue
            rows = [row for row, unit in enumerate(part.units) if unit not in left_out]
            yield part.take(rows)

    def _hash(self, unit: str) -> str:
        name = id_form(unit).encode(errors="surrogateescape")
        return hmac.new(bytes.fromhex(self.salt), name, hashlib.sha256).hexdigest()


def forgotten(config: SiteConfig, root: Path) -> Forgotten:
    """A site's list; empty where none was written.

    Raises:
        LoricaError: LOR-336 it cannot be read: records that were to be left out would be used.
    """
    path = (root / config.ledger.path).parent / NAME
    with storage_errors(path):
        if not path.exists():
            return Forgotten(path, secrets.token_hex(_SALT_BYTES))
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = json.loads(text)
        salt, units = content["salt"], content["units"]
        if len(bytes.fromhex(salt)) != _SALT_BYTES or not all(
            isinstance(unit, str) and len(bytes.fromhex(unit)) == 32 for unit in units
        ):
            raise ValueError("it does not hold what was written")
    except (ValueError, KeyError, TypeError) as error:
        raise LoricaError(
            Code.FORGOTTEN_DAMAGED, f"The list of units to be left out, {path}, is damaged: {error}"
        ) from None
    return Forgotten(path, salt, frozenset(units))
