"""In place of the protocol, in simulations of many sites: vectors are added up as they are.

The sum is the same integers to the bit, so whatever is made of it has the same distribution. Only
sites that a simulation made give their vectors so; a real site has no such setting.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lorica.common.errors import Code, LoricaError
from lorica.common.secure_sum.masks import centred
from lorica.common.secure_sum.one_sum import OneSum


class StandIn:
    """Has what the round loop asks of a collector (:mod:`lorica.server.secure_sum.collector`)."""

    asks_agreement = False
    openable = True

    def __init__(self, one: OneSum) -> None:
        """``one``: the sum."""
        self._one = one
        self._total = np.zeros(one.context.values, dtype=np.uint64)
        self._added: set[int] = set()

    def add(self, position: int, content: bytes) -> None:
        """Take a site's vector, 8 bytes a value."""
        vector = np.frombuffer(content, dtype="<u8")
        if len(vector) != len(self._total):
            raise LoricaError(
                Code.SEALED_REPLY_REFUSED,
                f"A virtual site gave {len(vector):,} values of {len(self._total):,}.",
            )
        if position not in self._added:
            self._total += vector
            self._added.add(position)

    def fix(self) -> frozenset[int]:
        """Who is in the sum."""
        return frozenset(self._added)

    def openings(self) -> dict[int, bytes]:
        """Nothing is left to ask."""
        return {}

    def take(self, position: int, content: bytes) -> None:
        """Nothing is asked."""

    def open(self) -> npt.NDArray[np.int64]:
        """The sum, shape (values,); centred modulo 2^bits."""
        return centred(self._total, self._one.context.bits)
