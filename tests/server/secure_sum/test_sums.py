"""Whole sums: exact over the survivors, whoever drops out when, and over again after a crash."""

from __future__ import annotations

import numpy as np
import pytest

from lorica.client.secure_sum.memory import KeptInMemory
from lorica.common.errors import Code, LoricaError
from lorica.server.secure_sum.collector import SumCollector
from tests.secure_sums import Federation


def _drops(federation: Federation) -> list[tuple[frozenset[int], frozenset[int]]]:
    """Nobody; as many as may, before the first answer; before the second; some at each."""
    sites, most = federation.one.terms.sites, federation.one.terms.dropouts
    first, last = frozenset(range(most)), frozenset(range(sites - most, sites))
    half = most // 2
    mixed = frozenset(range(half)), frozenset(range(sites - (most - half), sites))
    return [(frozenset(), frozenset()), (first, frozenset()), (frozenset(), last), mixed]


def _check(federation: Federation) -> None:
    for dead_first, dead_second in _drops(federation):
        federation.memories = [KeptInMemory() for _ in federation.keys]
        survivors = [n for n in range(len(federation.keys)) if n not in dead_first]
        found = federation.run(dead_first, dead_second)
        assert (found == federation.vectors[survivors].sum(axis=0)).all()


@pytest.mark.parametrize(("sites", "honest"), [(2, 2), (3, 2), (3, 3), (10, 7), (32, 28), (40, 36)])
def test_the_sum_is_exact_whoever_drops_out(sites: int, honest: int) -> None:
    _check(Federation(sites, honest=honest))


@pytest.mark.slow("10^5 values at up to 200 sites")
@pytest.mark.parametrize(("sites", "honest"), [(3, 2), (10, 7), (50, 45), (200, 180)])
def test_the_sum_of_long_vectors_is_exact_whoever_drops_out(sites: int, honest: int) -> None:
    _check(Federation(sites, honest=honest, values=100_000))


def test_one_dead_site_more_than_allowed_and_nothing_opens() -> None:
    federation = Federation(10, honest=7)
    with pytest.raises(LoricaError) as caught:
        federation.run(dead_first=frozenset(range(4)))
    assert caught.value.code is Code.SUM_LOST
    federation = Federation(10, honest=7)
    with pytest.raises(LoricaError) as caught:
        federation.run(frozenset({0}), frozenset({6, 7, 8, 9}))
    assert caught.value.code is Code.SUM_LOST


def test_a_site_that_died_between_the_exchanges_comes_back_and_the_sum_opens() -> None:
    federation = Federation(3, honest=3)
    collector = SumCollector(federation.one)
    for site in range(3):
        collector.add(site, federation.masked(site))
    requests = collector.openings()
    for site in (0, 1):
        collector.take(site, federation.opened(site, requests[site]))
    assert not collector.openable
    collector.take(2, federation.opened(2, requests[2]))
    assert collector.openable
    assert (collector.open() == federation.vectors.sum(axis=0)).all()


def test_a_coordinator_that_was_killed_goes_on_with_the_survivors_it_had_fixed() -> None:
    federation = Federation(5, honest=3)
    collector = SumCollector(federation.one)
    for site in (0, 1, 2, 4):
        collector.add(site, federation.masked(site))
    survivors = collector.fix()
    before = collector.openings()
    agreed = {site: federation.opened(site, request) for site, request in before.items()}
    for site, reply in agreed.items():
        collector.take(site, reply)
    federation.opened(0, collector.openings()[0])

    again = SumCollector(federation.one, survivors)
    with pytest.raises(LoricaError) as caught:
        again.add(3, federation.masked(3))  # alive now, and too late
    assert caught.value.code is Code.SEALED_REPLY_REFUSED
    for site in (4, 2, 1, 0):
        again.add(site, federation.masked(site))
    assert again.openings() == before
    for _ in range(2):
        for site, request in again.openings().items():
            again.take(site, federation.opened(site, request))
    assert (again.open() == federation.vectors[[0, 1, 2, 4]].sum(axis=0)).all()


def test_a_killed_coordinator_says_who_did_not_answer_again() -> None:
    federation = Federation(3, honest=2)
    again = SumCollector(federation.one, {0, 1, 2})
    again.add(0, federation.masked(0))
    with pytest.raises(LoricaError, match="site-0001") as caught:
        again.fix()
    assert caught.value.code is Code.SUM_LOST


def test_the_same_vector_twice_counts_once() -> None:
    federation = Federation(3, honest=2)
    collector = SumCollector(federation.one)
    for site in (0, 0, 1, 1, 2):
        collector.add(site, federation.masked(site))
    for site, request in collector.openings().items():
        collector.take(site, federation.opened(site, request))
    assert (collector.open() == federation.vectors.sum(axis=0)).all()


def _collected(federation: Federation) -> SumCollector:
    collector = SumCollector(federation.one)
    for site in range(len(federation.keys)):
        collector.add(site, federation.masked(site))
    return collector


def test_a_forged_share_is_put_aside_and_the_others_open_the_sum() -> None:
    federation = Federation(5, honest=4)  # any four shares open
    collector = _collected(federation)
    for site, request in collector.openings().items():
        reply = bytearray(federation.opened(site, request))
        if site == 3:
            reply[9] ^= 1  # in the first share that it gives
        collector.take(site, bytes(reply))
    assert (collector.open() == federation.vectors.sum(axis=0)).all()


def test_parcels_that_cannot_be_read_lose_the_sum_and_name_the_site() -> None:
    federation = Federation(3, honest=3)
    collector = SumCollector(federation.one)
    keys = federation.keys[2]
    real = keys.parcel
    keys.parcel = lambda context, other, sends: (  # type: ignore[method-assign]
        bytes(32) if sends else real(context, other, sends=False)
    )
    for site in range(3):
        collector.add(site, federation.masked(site))
    for site, request in collector.openings().items():
        collector.take(site, federation.opened(site, request))
    with pytest.raises(LoricaError, match="site-0002") as caught:
        collector.open()
    assert caught.value.code is Code.SUM_LOST


def test_a_site_that_lies_about_a_dropped_out_sites_mask_is_named() -> None:
    federation = Federation(4, honest=2, fewest=3)
    collector = SumCollector(federation.one)
    for site in (0, 1, 2):
        collector.add(site, federation.masked(site))
    for site, request in collector.openings().items():
        collector.take(site, federation.opened(site, request))
    for site, request in collector.openings().items():
        reply = federation.opened(site, request)
        if site == 1:
            # kind, 3 shares, count of pairs, position 3: then the secret of the pair.
            place = 1 + 4 + 3 * 36 + 4 + 4
            reply = reply[:place] + bytes([reply[place] ^ 1]) + reply[place + 1 :]
        collector.take(site, reply)
    with pytest.raises(LoricaError, match="site-0001") as caught:
        collector.open()
    assert caught.value.code is Code.SUM_LOST


def test_malformed_unsigned_and_foreign_vectors_are_refused_with_a_code() -> None:
    federation = Federation(4, honest=3)
    good = federation.masked(0)
    for content in (b"", good[:-1], good + b"x", good[:200]):
        with pytest.raises(LoricaError) as caught:
            SumCollector(federation.one).add(0, content)
        assert caught.value.code is Code.MESSAGE_MALFORMED
    altered = good[:-1] + bytes([good[-1] ^ 1])
    other_round = Federation(4, honest=3, round=2).masked(0)
    for content in (altered, bytes(64) + good[64:], other_round):
        with pytest.raises(LoricaError) as caught:
            SumCollector(federation.one).add(0, content)
        assert caught.value.code is Code.SEALED_REPLY_REFUSED
    with pytest.raises(LoricaError) as caught:
        SumCollector(federation.one).add(1, good)  # another site's
    assert caught.value.code is Code.SEALED_REPLY_REFUSED


def test_sites_that_are_not_at_one_about_their_mask_are_found_before_it_matters() -> None:
    federation = Federation(3, honest=2)
    liar = federation.keys[2]
    real = liar.pair
    liar.pair = lambda context, other: (  # type: ignore[method-assign]
        bytes(31) + b"\x07" if other.name == "site-0000" else real(context, other)
    )
    collector = SumCollector(federation.one)
    collector.add(0, federation.masked(0))
    collector.add(1, federation.masked(1))
    with pytest.raises(LoricaError, match="differs from site 'site-0000'") as caught:
        collector.add(2, federation.masked(2))
    assert caught.value.code is Code.SEALED_REPLY_REFUSED


def test_a_bad_second_reply_is_refused_with_a_code() -> None:
    federation = Federation(4, honest=3)
    collector = SumCollector(federation.one)
    for site in (0, 1, 2):
        collector.add(site, federation.masked(site))
    request = collector.openings()[0]
    agreed = federation.opened(0, request)
    for content in (b"", b"\x07", agreed[:-1], agreed + b"x"):
        with pytest.raises(LoricaError) as caught:
            collector.take(0, content)
        assert caught.value.code is Code.MESSAGE_MALFORMED
    with pytest.raises(LoricaError) as caught:
        collector.take(1, agreed)  # another site's signature
    assert caught.value.code is Code.SEALED_REPLY_REFUSED


def test_the_collector_keeps_no_vector_but_the_masked_sum() -> None:
    federation = Federation(3, honest=2, values=500)
    collector = _collected(federation)
    held = [message.vector for message in collector._masked.values()]
    assert held == [b"", b"", b""]
    for site, request in collector.openings().items():
        collector.take(site, federation.opened(site, request))
    total = federation.vectors.sum(axis=0)
    assert not np.intersect1d(collector._total, total.view(np.uint64)).size
    assert (collector.open() == total).all()
