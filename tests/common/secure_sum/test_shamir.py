"""Secret sharing: any t shares give the secret, t - 1 fit every secret."""

from __future__ import annotations

import itertools
import os

import pytest

from lorica.common.secure_sum.shamir import (
    PRIME,
    coefficients,
    element_from_bytes,
    element_to_bytes,
    secret,
    share,
    stream_bytes,
)


@pytest.mark.parametrize(("threshold", "parties"), [(1, 3), (3, 5), (7, 10)])
def test_any_threshold_of_shares_gives_the_secret(threshold: int, parties: int) -> None:
    polynomial = coefficients(os.urandom(stream_bytes(threshold)), threshold)
    shares = {party: share(polynomial, party) for party in range(1, parties + 1)}
    for chosen in itertools.combinations(shares, threshold):
        assert secret({party: shares[party] for party in chosen}) == polynomial[0]
    assert secret(shares) == polynomial[0]


def test_one_share_fewer_fits_every_secret() -> None:
    polynomial = coefficients(os.urandom(stream_bytes(4)), 4)
    held = {party: share(polynomial, party) for party in (2, 5, 9)}
    for other in (0, 1, PRIME - 1, 12345):  # a polynomial through these shares with that secret
        at_zero = secret({**held, 0: other}) if other == 0 else None
        assert at_zero in (None, 0)
        missing = _through({**held, 0: other}, 7)
        assert secret({**held, 7: missing}) == other


def _through(points: dict[int, int], at: int) -> int:
    """The value at ``at`` of the lowest polynomial through ``points``."""
    found = 0
    for x, y in points.items():
        term = y
        for other in points:
            if other != x:
                term = term * (at - other) % PRIME * pow(x - other, -1, PRIME) % PRIME
        found += term
    return found % PRIME


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33), PRIME.to_bytes(32, "big")])
def test_what_is_no_element_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="field element"):
        element_from_bytes(content)
    assert element_from_bytes(element_to_bytes(PRIME - 1)) == PRIME - 1
