"""Who shares secrets with whom: everybody, or neighbours on a circle in an order by hash."""

from __future__ import annotations

import hashlib

from lorica.common.secure_sum.terms import Terms


class Neighbours:
    """The graph of one sum; the same for everybody that knows its context."""

    def __init__(self, context: bytes, terms: Terms) -> None:
        """
        Args:
            context: of the sum, whose hash orders the circle.
            terms: n and k.
        """
        self._terms = terms
        self._complete = terms.neighbours >= terms.sites - 1
        if not self._complete:
            keys = [_drawn(context, position) for position in range(terms.sites)]
            self._circle = sorted(range(terms.sites), key=keys.__getitem__)
            self._place = {position: place for place, position in enumerate(self._circle)}

    def of(self, position: int) -> list[int]:
        """The neighbours of a site by position, in order; never itself."""
        n, half = self._terms.sites, self._terms.neighbours // 2
        if self._complete:
            return [other for other in range(n) if other != position]
        place = self._place[position]
        steps = [*range(-half, 0), *range(1, half + 1)]
        return sorted(self._circle[(place + step) % n] for step in steps)


def _drawn(context: bytes, position: int) -> bytes:
    return hashlib.sha256(
        b"lorica secure sum order" + context + position.to_bytes(4, "big")
    ).digest()
