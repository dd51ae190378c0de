"""The roster: who takes part in a run's sums, with keys that each site signed itself.

A site makes an X25519 key for the run and signs it with its identity; the coordinator collects
these cards into the roster and sends the same to all. It cannot put a key of its own under a name,
unless it invents the identity, too: then a site does not find it among its confirmed peers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from lorica.common.errors import Code, LoricaError
from lorica.common.secure_sum.context import canonical
from lorica.common.secure_sum.identity import Identity, signed_by
from lorica.common.secure_sum.terms import MOST_SITES

_DOMAIN = "lorica secure sum run key 1"
_MOST_NAME = 200
_FIELDS = {"name", "identity", "key", "signature"}


@dataclass(frozen=True)
class Card:
    """One site of a run, as it introduces itself."""

    name: str
    """The site's public name."""
    identity: str
    """Its Ed25519 public key, 64 hex digits."""
    key: str
    """Its X25519 public key for this run, 64 hex digits."""
    signature: str
    """By the identity, over run, plan, name and key: 128 hex digits."""

    def genuine(self, run: str, fingerprint: str) -> bool:
        """Whether the identity signed this card for the run."""
        try:
            signature = bytes.fromhex(self.signature)
        except ValueError:
            return False
        return signed_by(self.identity, _signed(run, fingerprint, self.name, self.key), signature)

    def as_json(self) -> str:
        """The card as it travels in a field."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(content: str) -> Card:
        """The inverse.

        Raises:
            LoricaError: LOR-501 malformed.
        """
        try:
            return _card(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise LoricaError(Code.MESSAGE_MALFORMED, "A site's card cannot be read.") from error


def make_card(identity: Identity, run: str, fingerprint: str, name: str, key: str) -> Card:
    """A card signed by ``identity``."""
    signature = identity.sign(_signed(run, fingerprint, name, key))
    return Card(name, identity.public, key, signature.hex())


@dataclass(frozen=True)
class Roster:
    """The sites that are asked for one sum, by name; a site's position is its place in it."""

    cards: tuple[Card, ...]

    @classmethod
    def of(cls, cards: Sequence[Card]) -> Roster:
        """In the order of names.

        Raises:
            LoricaError: LOR-531 a name, identity or key is there twice, or there are too many.
        """
        found = cls(tuple(sorted(cards, key=lambda card: card.name)))
        for what in ("name", "identity", "key"):
            if len({getattr(card, what) for card in cards}) < len(cards):
                raise LoricaError(
                    Code.ROSTER_INVALID, f"Two sites of the roster have the same {what}."
                )
        if len(cards) > MOST_SITES:
            raise LoricaError(Code.ROSTER_INVALID, f"The roster has {len(cards):,} sites.")
        return found

    def __len__(self) -> int:
        return len(self.cards)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all cards, 64 hex digits."""
        return hashlib.sha256(self.as_bytes()).hexdigest()

    @cached_property
    def positions(self) -> dict[str, int]:
        """Name -> position, from 0."""
        return {card.name: position for position, card in enumerate(self.cards)}

    def check(self, run: str, fingerprint: str) -> None:
        """Return if every card is signed for this run.

        Raises:
            LoricaError: LOR-531 one is not.
        """
        for card in self.cards:
            if not card.genuine(run, fingerprint):
                raise LoricaError(
                    Code.ROSTER_INVALID,
                    f"The key of site {card.name!r:.80} is not signed by it for this run.",
                )

    def as_bytes(self) -> bytes:
        """The roster as it travels and is hashed."""
        fields = [[card.name, card.identity, card.key, card.signature] for card in self.cards]
        return json.dumps(fields, separators=(",", ":")).encode("ascii")

    @staticmethod
    def from_bytes(content: bytes) -> Roster:
        """The inverse.

        Raises:
            LoricaError: LOR-501 malformed, LOR-531 not in order or with doubles.
        """
        names = ("name", "identity", "key", "signature")
        try:
            rows = json.loads(content)
            cards = [_card(dict(zip(names, row, strict=True))) for row in rows]
        except (ValueError, TypeError, RecursionError) as error:
            raise LoricaError(Code.MESSAGE_MALFORMED, "A roster cannot be read.") from error
        roster = Roster.of(cards)
        if list(roster.cards) != cards:
            raise LoricaError(Code.ROSTER_INVALID, "The roster is not in the order of names.")
        return roster


def _card(fields: object) -> Card:
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        raise ValueError("other fields")
    if not all(isinstance(value, str) for value in fields.values()):
        raise ValueError("not text")
    lengths = {"identity": 64, "key": 64, "signature": 128}
    for name, length in lengths.items():
        if len(fields[name]) != length or fields[name] != fields[name].lower():
            raise ValueError(f"{name} of another length")
        bytes.fromhex(fields[name])
    if not 0 < len(fields["name"]) <= _MOST_NAME:
        raise ValueError("a name of another length")
    return Card(**fields)


def _signed(run: str, fingerprint: str, name: str, key: str) -> bytes:
    return canonical(_DOMAIN, run, fingerprint, name, key)
