"""Shamir's secret sharing over the field of p = 2^255 - 19 elements.

A secret a₀ is the value at 0 of a polynomial a₀ + a₁x + … + a_{t-1}x^{t-1} with uniform
coefficients; party x holds its value at x. Any t values give the secret, and fewer say nothing of
it (Shamir, "How to share a secret", 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PRIME = 2**255 - 19
"""The field's size; elements travel as 32 bytes, big-endian."""

ELEMENT_BYTES = 32
_DRAWN_BYTES = 48  # reduced by p: within 2^-128 of uniform


def coefficients(stream: bytes, threshold: int) -> list[int]:
    """A secret and the other coefficients from uniform bytes: ``threshold`` field elements.

    Args:
        stream: at least :func:`stream_bytes` (threshold) bytes.
        threshold: t, how many shares give the secret.
    """
    if threshold < 1 or len(stream) < stream_bytes(threshold):
        raise ValueError(f"{len(stream)} bytes do not make {threshold} coefficients")
    return [
        int.from_bytes(stream[_DRAWN_BYTES * n : _DRAWN_BYTES * (n + 1)], "big") % PRIME
        for n in range(threshold)
    ]


def stream_bytes(threshold: int) -> int:
    """How many uniform bytes :func:`coefficients` needs."""
    return _DRAWN_BYTES * threshold


def share(polynomial: Sequence[int], party: int) -> int:
    """The share of a party, whose number is from 1."""
    if not 1 <= party < PRIME:
        raise ValueError(f"a party's number is at least 1, not {party}")
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * party + coefficient) % PRIME
    return value


def secret(shares: Mapping[int, int]) -> int:
    """The secret that shares, party -> value, are of: the interpolated value at 0.

    Give exactly the threshold's number of shares, or more; with fewer the result is meaningless.
    """
    if not shares:
        raise ValueError("no shares")
    found = 0
    for party, value in shares.items():
        above = below = 1
        for other in shares:
            if other != party:
                above = above * other % PRIME
                below = below * (other - party) % PRIME
        found += value * above * pow(below, -1, PRIME)
    return found % PRIME


def element_to_bytes(value: int) -> bytes:
    """A field element as 32 bytes."""
    return value.to_bytes(ELEMENT_BYTES, "big")


def element_from_bytes(content: bytes) -> int:
    """The inverse.

    Raises:
        ValueError: of another length, or not below p.
    """
    value = int.from_bytes(content, "big")
    if len(content) != ELEMENT_BYTES or value >= PRIME:
        raise ValueError("not a field element")
    return value
