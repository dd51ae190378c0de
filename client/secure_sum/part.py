"""A site's part in one sum: the masked vector, and what opens the masks of the sum alone.

Formal guarantee:
    *Claim.* Of this site's vector nobody learns anything but a sum that holds it together with the
    vectors of at least h - 1 other honest sites (:mod:`lorica.common.secure_sum.terms`, with the
    conditions there), however the coordinator and c sites behave: they may lie about who answered,
    send different things to different sites, repeat, mix and replay messages, and invent shares.
    What they see is, up to the security of X25519, HKDF-SHA256, AES-256-CTR, ChaCha20-Poly1305 and
    Ed25519, the same in distribution for any two sets of honest vectors with the same sum.

    *How.* (1) Every key is bound to the sum's context, in which run, plan, round, kind, roster,
    threshold, length and modulus are. (2) A site gives a round's vector to one context only, and
    agrees to one set of survivors only; both are written durably before the answer leaves
    (:mod:`lorica.client.secure_sum.memory`). (3) For a survivor it gives the share of the self
    mask, for one who dropped out the key of the pairwise mask, never both. (4) A repeated request
    gets the same bytes: everything is derived, nothing is drawn.

    *Not claimed.* A coordinator that invents sites, or whose confederates are more than c: what
    they then see is the vector with this site's own share of the noise, which the ledger charges
    as a figure of its own (:mod:`lorica.common.privacy.shared_noise`). A site that lies about its
    vector: it can move the sum as it likes, within the modulus, and nobody can see that it did. A
    site or coordinator that stops: the round is lost, and nothing is opened. Whoever restores an
    older copy of the memory's folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from lorica.client.secure_sum.memory import SumMemory
from lorica.common.errors import Code, LoricaError
from lorica.common.secure_sum.identity import signed_by
from lorica.common.secure_sum.keys import RunKeys
from lorica.common.secure_sum.masks import add_mask, mask_key, pack
from lorica.common.secure_sum.messages import (
    NONCE_BYTES,
    Agreed,
    Masked,
    Opened,
    Opening,
    Parcel,
    Promise,
    pair_hash,
    secret_hash,
    share_hash,
    survivors_statement,
)
from lorica.common.secure_sum.one_sum import OneSum
from lorica.common.secure_sum.shamir import (
    ELEMENT_BYTES,
    coefficients,
    element_from_bytes,
    element_to_bytes,
    share,
    stream_bytes,
)


class PartInSum:
    """What one site does in one sum."""

    def __init__(self, one: OneSum, keys: RunKeys, memory: SumMemory) -> None:
        """
        Args:
            one: the sum that the coordinator asks for.
            keys: the site's, of the run.
            memory: what it said before.

        Raises:
            LoricaError: LOR-531 the roster is not genuine, or lacks the site as it is.
        """
        one.roster.check(one.context.run, one.context.fingerprint)
        position = one.roster.positions.get(keys.name, -1)
        if position < 0 or one.roster.cards[position] != keys.card:
            raise LoricaError(
                Code.ROSTER_INVALID,
                f"The roster does not hold site {keys.name!r:.80} with the key it gave.",
            )
        self._one, self._keys, self._memory, self._position = one, keys, memory, position
        self._neighbours = one.graph.of(position)

    def begin(self) -> None:
        """Bind the round to this sum, durably.

        Raises:
            LoricaError: LOR-533 the round was given to another sum before, LOR-60x.
        """
        if self._first("sum", self._one.digest) != self._one.digest:
            context = self._one.context
            raise LoricaError(
                Code.SUM_UNKNOWN,
                f"Round {context.round} of run {context.run!r:.80} ({context.kind}) was begun as "
                "another sum: with another roster, threshold or length.",
            )

    def mask(self, vector: npt.NDArray[np.int64]) -> bytes:
        """The first message, for the vector with its noise, shape (values,).

        Raises:
            LoricaError: as of :meth:`begin`.
        """
        one, digest = self._one, self._one.digest
        if vector.shape != (one.context.values,):
            raise ValueError(f"{vector.shape} is not the shape of the sum's vectors")
        self.begin()
        dealt = Dealt(one, self._keys, self._position, vector)
        masked = vector.astype(np.int64).view(np.uint64).copy()
        add_mask(masked, mask_key(digest, dealt.secret), +1)
        promises = {}
        for other, secret in dealt.pairs.items():
            key = mask_key(digest, secret)
            add_mask(masked, key, +1 if self._position < other else -1)
            promises[other] = Promise(
                dealt.parcel(other), dealt.share_hash(other), pair_hash(digest, secret)
            )
        message = Masked(
            digest,
            secret_hash(digest, self._position, dealt.secret),
            dealt.share_hash(self._position),
            promises,
            pack(masked, one.context.bits),
        )
        return message.signed(self._keys.identity).to_bytes()

    def open(self, vector: npt.NDArray[np.int64], content: bytes) -> bytes:
        """The second message: what opens the sum over the survivors that the request names, or,
        where they must be agreed to first, this site's signature for them.

        Args:
            vector: what was masked.
            content: the request.

        Raises:
            LoricaError: LOR-501 malformed, LOR-533 of another sum, LOR-534 survivors that the site
                does not open the sum over.
        """
        one, digest = self._one, self._one.digest
        opening = Opening.from_bytes(
            content, sites=one.terms.sites, neighbours=one.terms.neighbours
        )
        if opening.context != digest:
            raise LoricaError(Code.SUM_UNKNOWN, "The survivors named are those of another sum.")
        self.begin()
        statement = self._agree(opening)
        if one.needs_signatures(opening.survivors):
            if not opening.signatures:
                return Agreed(self._keys.identity.sign(statement)).to_bytes()
            self._check_signatures(opening.signatures, statement)
        dealt = Dealt(one, self._keys, self._position, vector)
        shares = {self._position: dealt.share(self._position)}
        gone = one.everybody - opening.survivors
        spare: dict[tuple[int, int], bytes] = {}
        unreadable = set()
        for other, parcel in opening.parcels.items():
            found = self._read(other, parcel)
            if found is None:
                unreadable.add(other)
                continue
            shares[other] = found[0]
            of_pairs = zip(one.graph.of(other), found[1:], strict=True)
            spare |= {(other, third): share for third, share in of_pairs if third in gone}
        pairs = {other: secret for other, secret in dealt.pairs.items() if other in gone}
        return Opened(shares, pairs, spare, frozenset(unreadable)).to_bytes()

    def _agree(self, opening: Opening) -> bytes:
        """The statement about the survivors, after all checks; it is the one that counts."""
        one, survivors = self._one, opening.survivors
        if len(survivors) < one.terms.threshold:
            raise LoricaError(
                Code.SURVIVORS_REFUSED,
                f"{len(survivors)} sites are said to have answered; the threshold is "
                f"{one.terms.threshold} of {one.terms.sites}.",
            )
        if self._position not in survivors:
            raise LoricaError(
                Code.SURVIVORS_REFUSED, "The site itself is said not to have answered."
            )
        strangers = opening.parcels.keys() - (survivors & set(self._neighbours))
        if strangers:
            raise LoricaError(
                Code.SURVIVORS_REFUSED,
                f"There are parcels from {len(strangers)} sites that did not survive or are no "
                "neighbours.",
            )
        statement = survivors_statement(one.digest, survivors, one.terms.sites)
        if self._first("survivors", statement) != statement:
            raise LoricaError(
                Code.SURVIVORS_REFUSED, "The site agreed to another set of survivors before."
            )
        return statement

    def _check_signatures(self, signatures: Mapping[int, bytes], statement: bytes) -> None:
        one = self._one
        good = [
            position
            for position, signature in signatures.items()
            if position < one.terms.sites
            and signed_by(one.roster.cards[position].identity, statement, signature)
        ]
        if len(good) < len(signatures) or len(good) < one.terms.threshold:
            raise LoricaError(
                Code.SURVIVORS_REFUSED,
                f"{len(good)} of {len(signatures)} signatures for the survivors are good; the "
                f"threshold is {one.terms.threshold}, and none may be bad.",
            )

    def _read(self, sender: int, parcel: Parcel) -> list[bytes] | None:
        """The shares in a parcel; None when it cannot be opened or holds none."""
        digest = self._one.digest
        key = self._keys.parcel(digest, self._one.roster.cards[sender], sends=False)
        try:
            content = ChaCha20Poly1305(key).decrypt(parcel.nonce, parcel.sealed, digest)
            places = range(0, len(content), ELEMENT_BYTES)
            found = [content[place : place + ELEMENT_BYTES] for place in places]
            for share_ in found:
                element_from_bytes(share_)
        except (InvalidTag, ValueError):
            return None
        return found

    def _first(self, about: str, said: bytes) -> bytes:
        context = self._one.context
        return self._memory.first(context.run, context.round, context.kind, about, said)


class Dealt:
    """A site's secrets in a sum, shared among its neighbours: the self mask's and its pairs'."""

    def __init__(
        self, one: OneSum, keys: RunKeys, position: int, vector: npt.NDArray[np.int64]
    ) -> None:
        """
        Args:
            one: the sum.
            keys: the site's, of the run.
            position: the site's.
            vector: what it masks, shape (values,).
        """
        self._one, self._keys, self._position = one, keys, position
        cards, shares = one.roster.cards, one.terms.shares
        self._others = one.graph.of(position)
        each = stream_bytes(shares)
        hashed = hashlib.sha256(vector.astype("<i8").tobytes()).digest()
        count = len(self._others)
        stream = keys.own(one.digest, hashed, each * (count + 1) + NONCE_BYTES * count)
        drawn = [stream[each * n : each * (n + 1)] for n in range(count + 1)]
        self._nonces = stream[each * (count + 1) :]
        self._own = coefficients(drawn[0], shares)
        self.pairs = {other: keys.pair(one.digest, cards[other]) for other in self._others}
        """Secrets of the masks shared with the neighbours, by position."""
        self._of_pairs = [
            [element_from_bytes(secret), *coefficients(part, shares)[1:]]
            for secret, part in zip(self.pairs.values(), drawn[1:], strict=True)
        ]

    @property
    def secret(self) -> bytes:
        """Of the self mask."""
        return element_to_bytes(self._own[0])

    def share(self, holder: int) -> bytes:
        """The share of the self mask's secret for the site at a position."""
        return element_to_bytes(share(self._own, holder + 1))

    def share_hash(self, holder: int) -> bytes:
        """What the site commits itself to for it."""
        return share_hash(self._one.digest, self._position, holder, self.share(holder))

    def parcel(self, other: int) -> Parcel:
        """A neighbour's shares, encrypted for it."""
        place = self._others.index(other) * NONCE_BYTES
        nonce = self._nonces[place : place + NONCE_BYTES]
        key = self._keys.parcel(self._one.digest, self._one.roster.cards[other], sends=True)
        spare = [element_to_bytes(share(secret, other + 1)) for secret in self._of_pairs]
        content = b"".join([self.share(other), *spare])
        return Parcel(nonce, ChaCha20Poly1305(key).encrypt(nonce, content, self._one.digest))
