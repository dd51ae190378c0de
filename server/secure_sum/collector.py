"""The coordinator's side of one sum: collect masked vectors, fix who survived, open the sum.

It adds each vector up as it comes and keeps none, so that its memory never holds more than one
masked vector and the masked sum. What it learns is the sum; that it can learn no more is the
sites' doing (:mod:`lorica.client.secure_sum.part`), not this module's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lorica.common.errors import Code, LoricaError
from lorica.common.secure_sum.identity import signed_by
from lorica.common.secure_sum.masks import add_mask, centred, mask_key, unpack
from lorica.common.secure_sum.messages import (
    Agreed,
    Masked,
    Opened,
    Opening,
    pair_hash,
    second_from_bytes,
    secret_hash,
    share_hash,
    survivors_statement,
)
from lorica.common.secure_sum.one_sum import OneSum
from lorica.common.secure_sum.shamir import element_from_bytes, element_to_bytes, secret


class SumCollector:
    """Collects one sum."""

    def __init__(self, one: OneSum, survivors: Collection[int] | None = None) -> None:
        """
        Args:
            one: the sum.
            survivors: positions that were fixed before, where a sum goes on that was begun.
        """
        self._one = one
        self._total = np.zeros(one.context.values, dtype=np.uint64)
        self._masked: dict[int, Masked] = {}
        self._survivors = None if survivors is None else frozenset(survivors)
        self._signatures: dict[int, bytes] = {}
        self._opened: dict[int, Opened] = {}

    @property
    def answered(self) -> frozenset[int]:
        """Positions of those whose vectors are in."""
        return frozenset(self._masked)

    def add(self, position: int, content: bytes) -> None:
        """Take a site's first message.

        Raises:
            LoricaError: LOR-501 malformed, LOR-535 not signed by the site, of another sum, with
                other neighbours, not at one with a neighbour about their mask, or too late.
        """
        one = self._one
        message = Masked.from_bytes(
            content, neighbours=one.terms.neighbours, vector_bytes=one.vector_bytes
        )
        if position in self._masked:
            return  # the same again
        if self._survivors is not None and position not in self._survivors:
            raise _refused(one, position, "came after the survivors were fixed")
        if message.context != one.digest:
            raise _refused(one, position, "is of another sum")
        if not message.by(one.roster.cards[position].identity):
            raise _refused(one, position, "is not signed by the site")
        if sorted(message.promises) != one.graph.of(position):
            raise _refused(one, position, "has parcels for others than its neighbours")
        for other, promise in message.promises.items():
            theirs = self._masked.get(other)
            if theirs is not None and theirs.promises[position].pair != promise.pair:
                name = one.roster.cards[other].name
                raise _refused(one, position, f"differs from site {name!r:.80} about their mask")
        self._total += unpack(message.vector, one.context.values, one.context.bits)
        self._masked[position] = replace(message, vector=b"")

    def fix(self) -> frozenset[int]:
        """Fix the survivors: those whose vectors are in. The same ever after.

        Raises:
            LoricaError: LOR-536 they are fewer than the threshold, or a survivor that was fixed
                before has not answered again.
        """
        one = self._one
        if self._survivors is None and len(self._masked) < one.terms.threshold:
            raise LoricaError(
                Code.SUM_LOST,
                f"{len(self._masked)} of {one.terms.sites} sites gave a vector, and at least "
                f"{one.terms.threshold} must.",
            )
        if self._survivors is None:
            self._survivors = self.answered
        missing = self._survivors - self._masked.keys()
        if missing:
            raise LoricaError(
                Code.SUM_LOST,
                f"The sum was begun with {self._names(missing)}, which did not answer again.",
            )
        return self._survivors

    @property
    def asks_agreement(self) -> bool:
        """Whether the next thing to ask for is agreement about the survivors."""
        survivors = self.fix()
        return self._one.needs_signatures(survivors) and not self._agreed

    @property
    def _agreed(self) -> bool:
        return len(self._signatures) >= self._one.terms.threshold

    def openings(self) -> dict[int, bytes]:
        """What to ask the survivors next, by position; each is asked something else."""
        survivors = self.fix()
        one = self._one
        signed = self._signatures if one.needs_signatures(survivors) and self._agreed else {}
        found = {}
        for position in sorted(survivors):
            parcels = {
                other: self._masked[other].promises[position].parcel
                for other in one.graph.of(position)
                if other in survivors and not self.asks_agreement
            }
            opening = Opening(one.digest, survivors, signed, parcels)
            found[position] = opening.to_bytes(one.terms.sites)
        return found

    def take(self, position: int, content: bytes) -> None:
        """Take a survivor's answer to what :meth:`openings` asked it.

        Raises:
            LoricaError: LOR-501 malformed, LOR-535 a signature that is none.
        """
        reply = second_from_bytes(content)
        one = self._one
        if isinstance(reply, Opened):
            self._opened[position] = reply
            return
        statement = survivors_statement(one.digest, self.fix(), one.terms.sites)
        if not signed_by(one.roster.cards[position].identity, statement, reply.signature):
            raise _refused(one, position, "does not sign who survived")
        assert isinstance(reply, Agreed)
        self._signatures[position] = reply.signature

    @property
    def openable(self) -> bool:
        """Whether enough has come in to open the sum."""
        try:
            list(self._keys())
        except LoricaError:
            return False
        return True

    def open(self) -> npt.NDArray[np.int64]:
        """The sum over the survivors' vectors, shape (values,); centred modulo 2^bits.

        Raises:
            LoricaError: LOR-536 what came in does not open it.
        """
        opened = self._total.copy()
        for key, sign in self._keys():
            add_mask(opened, key, sign)
        return centred(opened, self._one.context.bits)

    def _keys(self) -> Iterator[tuple[bytes, int]]:
        """Keys of all masks in the total, and the sign that takes each away."""
        survivors, digest = self.fix(), self._one.digest
        for position in sorted(survivors):
            yield mask_key(digest, self._own_secret(position)), -1
        for gone in sorted(self._one.everybody - survivors):
            for position in self._one.graph.of(gone):
                if position in survivors:
                    key = mask_key(digest, self._pair_secret(position, gone))
                    yield key, -1 if position < gone else +1

    def _own_secret(self, position: int) -> bytes:
        """Of a survivor's self mask, from shares that are what it committed itself to."""
        digest, promised = self._one.digest, self._masked[position]
        good = {}
        for holder, opened in self._opened.items():
            share = opened.shares.get(position)
            if share is None:
                continue
            hashed = promised.own_share if holder == position else promised.promises[holder].share
            if share_hash(digest, position, holder, share) == hashed:
                good[holder] = share
        found = self._joined(good, f"the self mask of {self._names([position])}")
        if secret_hash(digest, position, found) != promised.own_mask:
            raise self._cheated(position)
        return found

    def _pair_secret(self, position: int, gone: int) -> bytes:
        """Of the mask that a survivor shares with one who dropped out: from itself, or from shares
        where it died since."""
        digest = self._one.digest
        promised = self._masked[position].promises[gone].pair
        own = self._opened.get(position)
        if own is not None and gone in own.pairs:
            if pair_hash(digest, own.pairs[gone]) != promised:
                raise self._cheated(position)
            return own.pairs[gone]
        spare = {
            holder: opened.spare[position, gone]
            for holder, opened in self._opened.items()
            if (position, gone) in opened.spare
        }
        found = self._joined(spare, f"a mask of {self._names([position])}")
        if pair_hash(digest, found) != promised:
            raise self._cheated(position)
        return found

    def _joined(self, shares: Mapping[int, bytes], what: str) -> bytes:
        needed = self._one.terms.shares
        if len(shares) < needed:
            raise LoricaError(
                Code.SUM_LOST, f"{len(shares)} good shares of {what} came in; {needed} are needed."
            )
        chosen = list(shares.items())[:needed]
        return element_to_bytes(secret({h + 1: element_from_bytes(s) for h, s in chosen}))

    def _cheated(self, position: int) -> LoricaError:
        return LoricaError(
            Code.SUM_LOST,
            f"What opens a mask of {self._names([position])} is not what it committed itself to.",
        )

    def _names(self, positions: Collection[int]) -> str:
        return ", ".join(repr(self._one.roster.cards[p].name)[:80] for p in sorted(positions))


def _refused(one: OneSum, position: int, what: str) -> LoricaError:
    name = one.roster.cards[position].name
    return LoricaError(Code.SEALED_REPLY_REFUSED, f"The vector of site {name!r:.80} {what}.")
