"""What sites and coordinator send one another for a sum, as bytes.

=================  =====================  ==================================================
message            way                    holds
=================  =====================  ==================================================
:class:`Masked`    site -> coordinator    the masked vector, a parcel for every neighbour
:class:`Opening`   coordinator -> site    who survived, signatures for it, the site's parcels
:class:`Agreed`    site -> coordinator    the site's signature for that set
:class:`Opened`    site -> coordinator    shares of survivors' self masks, keys of pairs with
                                          those who dropped out
=================  =====================  ==================================================

Numbers are little-endian; every length is checked, and nothing may be left over.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from lorica.common.errors import Code, LoricaError
from lorica.common.secure_sum.context import canonical
from lorica.common.secure_sum.identity import SIGNATURE_BYTES, Identity, signed_by
from lorica.common.secure_sum.shamir import ELEMENT_BYTES
from lorica.common.secure_sum.terms import MOST_SITES

NONCE_BYTES = 12
_TAG_BYTES = 16
_HASH_BYTES = 32
_AGREED, _OPENED = 0, 1


@dataclass(frozen=True)
class SumRequest:
    """What the coordinator asks of a site for a sum: a masked vector, or to open the sum."""

    roster: bytes
    """:meth:`lorica.common.secure_sum.roster.Roster.as_bytes`."""
    opening: bytes = b""
    """:class:`Opening`; empty in the first request."""

    def to_bytes(self) -> bytes:
        """The request as it travels."""
        return _count(len(self.roster)) + self.roster + self.opening

    @staticmethod
    def from_bytes(content: bytes) -> SumRequest:
        """The inverse.

        Raises:
            LoricaError: LOR-501 malformed.
        """
        reader = _Reader(content)
        (length,) = struct.unpack("<I", reader.take(4))
        return SumRequest(reader.take(length), content[4 + length :])


@dataclass(frozen=True)
class Parcel:
    """What one site sends to a neighbour by way of the coordinator."""

    nonce: bytes
    """12 bytes."""
    sealed: bytes
    """The neighbour's shares, under ChaCha20-Poly1305: of the sender's self mask, and of the keys
    of the masks that the sender shares with its own neighbours, in their order."""


@dataclass(frozen=True)
class Promise:
    """What a site commits itself to towards a neighbour, and the parcel for it."""

    parcel: Parcel
    share: bytes
    """:func:`share_hash` of the self mask's share in the parcel."""
    pair: bytes
    """:func:`pair_hash` of the secret of the pair's mask."""


@dataclass(frozen=True)
class Masked:
    """A site's first message."""

    context: bytes
    """Digest of the sum's context."""
    own_mask: bytes
    """:func:`secret_hash` of the self mask's secret."""
    own_share: bytes
    """:func:`share_hash` of the share that the site keeps of it."""
    promises: Mapping[int, Promise]
    """By the neighbour's position."""
    vector: bytes
    """The masked vector, packed."""
    signature: bytes = b""
    """By the site's identity, over all of it."""

    def signed(self, identity: Identity) -> Masked:
        """The message with its signature."""
        signature = identity.sign(_to_sign(self._body()))
        return Masked(
            self.context, self.own_mask, self.own_share, self.promises, self.vector, signature
        )

    def by(self, public: str) -> bool:
        """Whether it was signed with the key whose public part this is."""
        return signed_by(public, _to_sign(self._body()), self.signature)

    def to_bytes(self) -> bytes:
        """The message as it travels."""
        return self.signature + self._body()

    def _body(self) -> bytes:
        parts = [self.context, self.own_mask, self.own_share, _count(len(self.promises))]
        for position, promise in sorted(self.promises.items()):
            parcel = promise.parcel
            parts += [_count(position), parcel.nonce, parcel.sealed, promise.share, promise.pair]
        return b"".join([*parts, self.vector])

    @staticmethod
    def from_bytes(content: bytes, *, neighbours: int, vector_bytes: int) -> Masked:
        """The inverse.

        Args:
            content: as it came.
            neighbours: k.
            vector_bytes: how long the packed vector is.

        Raises:
            LoricaError: LOR-501 malformed.
        """
        reader = _Reader(content)
        signature = reader.take(SIGNATURE_BYTES)
        context, own_mask, own_share = (reader.take(_HASH_BYTES) for _ in range(3))
        promises = {
            position: Promise(
                reader.parcel(neighbours),
                reader.take(_HASH_BYTES),
                reader.take(_HASH_BYTES),
            )
            for position in reader.positions()
        }
        vector = reader.take(vector_bytes)
        reader.end()
        return Masked(context, own_mask, own_share, promises, vector, signature)


@dataclass(frozen=True)
class Opening:
    """The coordinator's second request to one site."""

    context: bytes
    """Digest of the sum's context."""
    survivors: frozenset[int]
    """Positions of those whose vectors are in the sum."""
    signatures: Mapping[int, bytes]
    """For this very set, by position; empty when everybody survived, or to ask for one."""
    parcels: Mapping[int, Parcel]
    """For the site, by the sender's position."""

    def to_bytes(self, sites: int) -> bytes:
        """The request as it travels."""
        parts = [self.context, bitmap(self.survivors, sites), _count(len(self.signatures))]
        for position, signature in sorted(self.signatures.items()):
            parts += [_count(position), signature]
        parts.append(_count(len(self.parcels)))
        for position, parcel in sorted(self.parcels.items()):
            parts += [_count(position), parcel.nonce, parcel.sealed]
        return b"".join(parts)

    @staticmethod
    def from_bytes(content: bytes, *, sites: int, neighbours: int) -> Opening:
        """The inverse, for a sum over ``sites`` sites with so many neighbours each.

        Raises:
            LoricaError: LOR-501 malformed.
        """
        reader = _Reader(content)
        context = reader.take(_HASH_BYTES)
        survivors = reader.bitmap(sites)
        signatures = {p: reader.take(SIGNATURE_BYTES) for p in reader.positions()}
        parcels = {p: reader.parcel(neighbours) for p in reader.positions()}
        reader.end()
        return Opening(context, survivors, signatures, parcels)


@dataclass(frozen=True)
class Agreed:
    """A site's signature for the survivors it was told."""

    signature: bytes

    def to_bytes(self) -> bytes:
        """The reply as it travels."""
        return bytes([_AGREED]) + self.signature


@dataclass(frozen=True)
class Opened:
    """What opens masks of a sum, and of nothing else."""

    shares: Mapping[int, bytes]
    """Of survivors' self masks, by their position: 32 bytes each."""
    pairs: Mapping[int, bytes]
    """Secrets of the masks shared with those who dropped out, by their position: 32 bytes each."""
    spare: Mapping[tuple[int, int], bytes]
    """Shares of such secrets between a survivor and one who dropped out, for the case that the
    survivor does not answer: by both positions, 32 bytes each."""
    unreadable: frozenset[int]
    """Positions of survivors whose parcel could not be opened."""

    def to_bytes(self) -> bytes:
        """The reply as it travels."""
        parts = [bytes([_OPENED])]
        for found in (self.shares, self.pairs):
            parts.append(_count(len(found)))
            for position, value in sorted(found.items()):
                parts += [_count(position), value]
        parts.append(_count(len(self.spare)))
        for (survivor, gone), value in sorted(self.spare.items()):
            parts += [_count(survivor), _count(gone), value]
        parts.append(_count(len(self.unreadable)))
        parts += [_count(position) for position in sorted(self.unreadable)]
        return b"".join(parts)


def second_from_bytes(content: bytes) -> Agreed | Opened:
    """A site's second reply.

    Raises:
        LoricaError: LOR-501 malformed.
    """
    reader = _Reader(content)
    kind = reader.take(1)[0]
    found: Agreed | Opened
    if kind == _AGREED:
        found = Agreed(reader.take(SIGNATURE_BYTES))
    elif kind == _OPENED:
        shares = {p: reader.take(ELEMENT_BYTES) for p in reader.positions()}
        pairs = {p: reader.take(ELEMENT_BYTES) for p in reader.positions()}
        found = Opened(shares, pairs, reader.spare(), frozenset(reader.positions()))
    else:
        raise _malformed("is of no known kind")
    reader.end()
    return found


def share_hash(context: bytes, dealer: int, holder: int, share: bytes) -> bytes:
    """What a dealer commits itself to for a share; the share is uniform, so nothing shows."""
    fields = canonical("lorica secure sum share 1", context.hex(), dealer, holder, share.hex())
    return hashlib.sha256(fields).digest()


def secret_hash(context: bytes, dealer: int, secret: bytes) -> bytes:
    """The same for the secret itself."""
    fields = canonical("lorica secure sum secret 1", context.hex(), dealer, secret.hex())
    return hashlib.sha256(fields).digest()


def pair_hash(context: bytes, secret: bytes) -> bytes:
    """The same for the secret of a pair's mask; both of the pair give the same."""
    fields = canonical("lorica secure sum pair 1", context.hex(), secret.hex())
    return hashlib.sha256(fields).digest()


def survivors_statement(context: bytes, survivors: Collection[int], sites: int) -> bytes:
    """What a site signs when it agrees to a set of survivors."""
    hashed = hashlib.sha256(bitmap(survivors, sites)).hexdigest()
    return canonical("lorica secure sum survivors 1", context.hex(), hashed)


def bitmap(positions: Collection[int], sites: int) -> bytes:
    """A set of positions as bits, the lowest first."""
    number = sum(1 << position for position in set(positions))
    return number.to_bytes(-(-sites // 8), "little")


class _Reader:
    """Takes bytes off a message, checked."""

    def __init__(self, content: bytes) -> None:
        self._content, self._place = content, 0

    def take(self, length: int) -> bytes:
        part = self._content[self._place : self._place + length]
        if len(part) < length:
            raise _malformed("is cut short")
        self._place += length
        return part

    def positions(self) -> Iterator[int]:
        """A count and then, each before what the caller takes, so many rising positions."""
        (count,) = struct.unpack("<I", self.take(4))
        if count > MOST_SITES:
            raise _malformed(f"speaks of {count:,} sites")
        before = -1
        for _ in range(count):
            (position,) = struct.unpack("<I", self.take(4))
            if not before < position < MOST_SITES:
                raise _malformed("names sites out of order")
            before = position
            yield position

    def parcel(self, neighbours: int) -> Parcel:
        nonce = self.take(NONCE_BYTES)
        return Parcel(nonce, self.take(ELEMENT_BYTES * (neighbours + 1) + _TAG_BYTES))

    def spare(self) -> dict[tuple[int, int], bytes]:
        (count,) = struct.unpack("<I", self.take(4))
        found: dict[tuple[int, int], bytes] = {}
        for _ in range(count):
            survivor, gone = struct.unpack("<II", self.take(8))
            found[(survivor, gone)] = self.take(ELEMENT_BYTES)
        if len(found) < count:
            raise _malformed("names a pair twice")
        return found

    def bitmap(self, sites: int) -> frozenset[int]:
        number = int.from_bytes(self.take(-(-sites // 8)), "little")
        if number >> sites:
            raise _malformed("names a site that is not there")
        return frozenset(place for place in range(sites) if number >> place & 1)

    def end(self) -> None:
        if self._place != len(self._content):
            raise _malformed("has bytes left over")


def _count(number: int) -> bytes:
    return struct.pack("<I", number)


def _to_sign(body: bytes) -> bytes:
    return canonical("lorica secure sum masked 1", hashlib.sha256(body).hexdigest())


def _malformed(what: str) -> LoricaError:
    return LoricaError(Code.MESSAGE_MALFORMED, f"A message of a sealed sum {what}.")
