"""Whom a site knows: its own key, the peers that it met in rosters, those its people confirmed.

All of it lies in one folder beside the ledger. ``identity.pem`` is the site's own key for sealed
sums, made when it is first needed and never overwritten. ``met.json`` holds what rosters said, and
proves nothing. ``confirmed.json`` holds what people compared and confirmed; with ``policy.peers``
of site.toml it is all that counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import (
    create_atomically,
    make_private_folder,
    storage_errors,
    write_atomically,
)
from lorica.common.secure_sum.identity import Identity, fingerprint_of
from lorica.common.secure_sum.roster import Roster

_MOST_MET = 10_000


@dataclass(frozen=True)
class Peer:
    """One other site."""

    name: str
    identity: str
    """Its public key, 64 hex digits, as rosters give it."""
    confirmed: bool

    @property
    def fingerprint(self) -> str:
        """What people compare."""
        return fingerprint_of(self.identity)


class Peers:
    """A site's folder of peers."""

    def __init__(self, folder: Path, listed: Mapping[str, str] | None = None) -> None:
        """
        Args:
            folder: made when something is written.
            listed: name -> fingerprint that ``policy.peers`` has.
        """
        self._folder = folder
        self._listed = {name: _plain(text) for name, text in (listed or {}).items()}

    def identity(self) -> Identity:
        """The site's own key; made where there is none.

        Raises:
            LoricaError: LOR-409 what is there is no key, or others may read it; LOR-60x.
        """
        path = self._folder / "identity.pem"
        key = Ed25519PrivateKey.generate()
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        make_private_folder(self._folder)
        if not path.exists() and create_atomically(path, content, mode=0o600):
            return Identity(key)
        with storage_errors(path):
            open_to_others = path.stat().st_mode & 0o077
            held = path.read_bytes()
        try:
            found = load_pem_private_key(held, password=None)
        except (ValueError, TypeError) as error:
            raise LoricaError(Code.SITE_CONFIG, f"{path} holds no readable key.") from error
        if not isinstance(found, Ed25519PrivateKey) or open_to_others:
            raise LoricaError(
                Code.SITE_CONFIG,
                f"{path} is no Ed25519 key that its owner alone may read.",
                mend=f"chmod 600 {path}. If somebody may have read it, remove it: a new one is "
                "made, which the other sites' people must confirm again.",
            )
        return Identity(found)

    def own(self) -> Peer:
        """This site, as others see it."""
        return Peer("", self.identity().public, confirmed=True)

    def meet(self, roster: Roster) -> None:
        """Note who is in a roster, for people to look at."""
        met = self._read("met.json") | {card.name: card.identity for card in roster.cards}
        if len(met) <= _MOST_MET and met != self._read("met.json"):
            self._write("met.json", met)

    def all(self) -> list[Peer]:
        """Everybody met or confirmed, by name."""
        confirmed = self._read("confirmed.json")
        known = self._read("met.json") | confirmed
        return [Peer(name, known[name], self.knows(name, known[name])) for name in sorted(known)]

    def knows(self, name: str, identity: str) -> bool:
        """Whether people confirmed that a site has this key."""
        if self._read("confirmed.json").get(name) == identity:
            return True
        listed = self._listed.get(name)
        return listed is not None and listed == _plain(fingerprint_of(identity))

    def confirm(self, name: str) -> Peer:
        """Take the key that a site was met with for its own from now on.

        Raises:
            LoricaError: LOR-728 it was never met.
        """
        met = self._read("met.json")
        if name not in met:
            raise LoricaError(
                Code.SITE_UNKNOWN,
                f"No site {name!r:.80} was in a roster that this site was sent.",
                mend="`lorica site peers show` lists those that were; a run must have asked first.",
            )
        self._write("confirmed.json", self._read("confirmed.json") | {name: met[name]})
        return Peer(name, met[name], confirmed=True)

    def _read(self, name: str) -> dict[str, str]:
        path = self._folder / name
        if not path.exists():
            return {}
        with storage_errors(path):
            content = path.read_text(encoding="utf-8")
        try:
            found = json.loads(content)
            return {str(key): str(value) for key, value in found.items()}
        except (ValueError, AttributeError) as error:
            raise LoricaError(
                Code.SITE_CONFIG,
                f"{path} is damaged.",
                mend="Remove it, and confirm the peers again.",
            ) from error

    def _write(self, name: str, content: dict[str, str]) -> None:
        make_private_folder(self._folder)
        write_atomically(self._folder / name, json.dumps(content, indent=1) + "\n", mode=0o600)


def _plain(fingerprint: str) -> str:
    return fingerprint.replace(" ", "").replace(":", "").lower()
