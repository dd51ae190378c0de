"""A site against a hostile coordinator: what it refuses, what it repeats, what the view shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from lorica.client.secure_sum.memory import KeptInFolder, KeptInMemory
from lorica.client.secure_sum.part import PartInSum
from lorica.common.errors import Code, LoricaError
from lorica.common.secure_sum.identity import Identity
from lorica.common.secure_sum.keys import RunKeys
from lorica.common.secure_sum.masks import add_mask, centred, mask_key, unpack
from lorica.common.secure_sum.messages import (
    Masked,
    Opened,
    Opening,
    second_from_bytes,
    survivors_statement,
)
from lorica.common.secure_sum.one_sum import OneSum
from lorica.common.secure_sum.roster import Card, Roster, make_card
from lorica.common.secure_sum.shamir import element_from_bytes, element_to_bytes, secret
from lorica.common.secure_sum.terms import terms
from lorica.server.secure_sum.collector import SumCollector
from tests.secure_sums import PLAN, RUN, Federation, run_keys


def _begun(sites: int = 5, honest: int = 3, answered: int | None = None) -> tuple:
    federation = Federation(sites, honest=honest)
    collector = SumCollector(federation.one)
    for site in range(sites if answered is None else answered):
        collector.add(site, federation.masked(site))
    return federation, collector


def _opening(federation: Federation, survivors: set[int], signers: set[int] = frozenset()) -> bytes:  # type: ignore[assignment]
    one = federation.one
    statement = survivors_statement(one.digest, survivors, one.terms.sites)
    signed = {site: federation.keys[site].identity.sign(statement) for site in signers}
    return Opening(one.digest, frozenset(survivors), signed, {}).to_bytes(one.terms.sites)


def _refused(federation: Federation, site: int, request: bytes) -> Code:
    with pytest.raises(LoricaError) as caught:
        federation.opened(site, request)
    return caught.value.code


def test_the_same_request_gets_the_same_bytes_also_after_a_restart() -> None:
    first, second = Federation(4, honest=3), Federation(4, honest=3)
    assert first.masked(1) == first.masked(1) == second.masked(1)
    collectors = []
    for federation in (first, second):
        collector = SumCollector(federation.one)
        for site in range(4):
            collector.add(site, federation.masked(site))
        collectors.append(collector)
    request = collectors[0].openings()[2]
    assert first.opened(2, request) == first.opened(2, request) == second.opened(2, request)


def test_a_second_set_of_survivors_is_refused() -> None:
    federation, _ = _begun()
    everybody = {0, 1, 2, 3, 4}
    assert isinstance(
        second_from_bytes(federation.opened(0, _opening(federation, everybody))), Opened
    )
    other = _opening(federation, {0, 1, 2, 3}, {0, 1, 2, 3})
    assert _refused(federation, 0, other) is Code.SURVIVORS_REFUSED
    # And the other way round: once agreed to four, "everybody" comes too late.
    federation.opened(1, _opening(federation, {0, 1, 2, 3}))
    assert _refused(federation, 1, _opening(federation, everybody)) is Code.SURVIVORS_REFUSED


def test_too_few_survivors_or_a_set_without_the_site_are_refused() -> None:
    federation, _ = _begun()
    assert federation.one.terms.threshold == 3
    assert _refused(federation, 0, _opening(federation, {0, 1})) is Code.SURVIVORS_REFUSED
    assert _refused(federation, 0, _opening(federation, {1, 2, 3, 4})) is Code.SURVIVORS_REFUSED


def test_missing_bad_and_repeated_signatures_are_refused() -> None:
    federation, _ = _begun()
    survivors = {0, 1, 2, 3}
    assert _refused(federation, 0, _opening(federation, survivors, {0, 1})) is (
        Code.SURVIVORS_REFUSED
    )
    one = federation.one
    statement = survivors_statement(one.digest, survivors, one.terms.sites)
    once = federation.keys[1].identity.sign(statement)
    copied = Opening(one.digest, frozenset(survivors), {0: once, 1: once, 2: once}, {})
    assert _refused(federation, 0, copied.to_bytes(5)) is Code.SURVIVORS_REFUSED
    forged = {site: bytes(64) for site in survivors}
    bad = Opening(one.digest, frozenset(survivors), forged, {})
    assert _refused(federation, 0, bad.to_bytes(5)) is Code.SURVIVORS_REFUSED
    outsiders = {site: Identity.generate().sign(statement) for site in survivors}
    bad = Opening(one.digest, frozenset(survivors), outsiders, {})
    assert _refused(federation, 0, bad.to_bytes(5)) is Code.SURVIVORS_REFUSED
    good = _opening(federation, survivors, {1, 2, 3})
    assert isinstance(second_from_bytes(federation.opened(0, good)), Opened)


def test_no_site_is_opened_both_ways() -> None:
    federation, collector = _begun(5, 3, answered=4)
    for _ in range(2):
        for site, request in collector.openings().items():
            collector.take(site, federation.opened(site, request))
    for opened in collector._opened.values():
        assert set(opened.shares) == {0, 1, 2, 3}
        assert set(opened.pairs) == {4}
        assert {gone for _, gone in opened.spare} == {4}


def test_parcels_of_sites_that_did_not_survive_are_refused() -> None:
    federation, collector = _begun()
    one = federation.one
    parcel = collector._masked[4].promises[0].parcel
    survivors = frozenset({0, 1, 2, 3})
    statement = survivors_statement(one.digest, survivors, 5)
    signed = {site: federation.keys[site].identity.sign(statement) for site in survivors}
    request = Opening(one.digest, survivors, signed, {4: parcel}).to_bytes(5)
    assert _refused(federation, 0, request) is Code.SURVIVORS_REFUSED


def test_a_replayed_stage_of_another_round_is_refused() -> None:
    federation, _ = _begun()
    later = Federation(5, honest=3, round=2)
    request = _opening(later, {0, 1, 2, 3, 4})
    assert _refused(federation, 0, request) is Code.SUM_UNKNOWN


@pytest.mark.parametrize("change", ["roster", "threshold", "length", "kind"])
def test_a_round_is_given_to_one_sum_only(change: str) -> None:
    federation, _ = _begun()
    roster, numbers = federation.roster, terms(5, 3)
    what = {"round": 1, "kind": "train", "values": 20, "bits": 48}
    if change == "roster":
        roster = Roster.of([keys.card for keys in federation.keys[:4]])
        numbers = terms(4, 3)
    elif change == "threshold":
        numbers = terms(5, 3, 4)
    elif change == "length":
        what["values"] = 19
    else:
        what["kind"] = "evaluate"
    other = OneSum.of(roster, numbers, run=RUN, fingerprint=PLAN, **what)  # type: ignore[arg-type]
    part = federation.part(0, other)
    if change == "kind":  # another sum altogether, with a vector of its own
        part.begin()
        return
    with pytest.raises(LoricaError) as caught:
        part.begin()
    assert caught.value.code is Code.SUM_UNKNOWN


def test_the_first_word_counts_also_after_a_restart(tmp_path: Path) -> None:
    federation, _ = _begun()
    federation.memories[0] = KeptInFolder(tmp_path / "sums")
    federation.masked(0)
    federation.opened(0, _opening(federation, {0, 1, 2, 3}))
    federation.memories[0] = KeptInFolder(tmp_path / "sums")
    assert _refused(federation, 0, _opening(federation, {0, 1, 2, 4})) is Code.SURVIVORS_REFUSED
    assert (tmp_path / "sums").stat().st_mode & 0o077 == 0


def _card_of_nobody(name: str) -> Card:
    return RunKeys(Identity.generate(), RUN, PLAN, name).card


def test_a_roster_that_is_not_genuine_is_refused() -> None:
    keys = run_keys(4)
    cards = [one.card for one in keys]
    other_run = run_keys(4, "run-2")[1].card
    swapped = make_card(Identity.generate(), RUN, PLAN, "site-0001", cards[1].key)
    stolen = Card(cards[1].name, cards[1].identity, swapped.key, swapped.signature)
    own = make_card(keys[0].identity, RUN, PLAN, "site-0000", cards[2].key[::-1])
    for bad, replaced in ((other_run, 1), (stolen, 1), (own, 0)):
        roster = Roster.of([bad if n == replaced else card for n, card in enumerate(cards)])
        one = OneSum.of(
            roster, terms(4, 3), run=RUN, fingerprint=PLAN, round=1, kind="train", values=3, bits=48
        )
        with pytest.raises(LoricaError) as caught:
            PartInSum(one, keys[0], KeptInMemory())
        assert caught.value.code is Code.ROSTER_INVALID
    for doubled in ([*cards, cards[0]], [*cards, _card_of_nobody("site-0002")]):
        with pytest.raises(LoricaError) as caught:
            Roster.of(doubled)
        assert caught.value.code is Code.ROSTER_INVALID


def test_a_key_of_small_order_is_refused() -> None:
    keys = run_keys(3)
    evil = Identity.generate()
    cards = [keys[0].card, keys[1].card, make_card(evil, RUN, PLAN, "site-0002", "0" * 64)]
    roster = Roster.of(cards)
    one = OneSum.of(
        roster, terms(3, 2), run=RUN, fingerprint=PLAN, round=1, kind="train", values=3, bits=48
    )
    with pytest.raises(LoricaError) as caught:
        PartInSum(one, keys[0], KeptInMemory()).mask(np.zeros(3, dtype=np.int64))
    assert caught.value.code is Code.ROSTER_INVALID


def test_giving_out_a_pairs_key_of_a_round_tells_nothing_of_another() -> None:
    first, second = Federation(3, honest=2, round=1), Federation(3, honest=2, round=2)
    card = first.keys[1].card
    keys = first.keys[0]
    known = keys.pair(first.one.digest, card)
    assert known == first.keys[1].pair(first.one.digest, keys.card)
    assert known != keys.pair(second.one.digest, card)
    assert known != keys.parcel(first.one.digest, card, sends=True)
    assert keys.parcel(first.one.digest, card, sends=True) == first.keys[1].parcel(
        first.one.digest, keys.card, sends=False
    )


def test_another_vector_in_the_same_sum_has_another_self_mask() -> None:
    federation = Federation(3, honest=2)
    one = Masked.from_bytes(
        federation.masked(0), neighbours=2, vector_bytes=federation.one.vector_bytes
    )
    federation.vectors[0] += 1
    two = Masked.from_bytes(
        federation.masked(0), neighbours=2, vector_bytes=federation.one.vector_bytes
    )
    assert one.own_mask != two.own_mask
    away = unpack(two.vector, 20, 48) - unpack(one.vector, 20, 48)
    assert (np.abs(centred(away, 48)) > 2**20).sum() > 15  # not 1: nothing shows of the difference
    assert one.promises[1].parcel.nonce != two.promises[1].parcel.nonce


def _view(vectors: np.ndarray, tag: int) -> np.ndarray:
    """What a coordinator and t - 1 = 2 colluders see of honest sites 0, 1, 2 of five with one of
    them lost: masked vectors, less every mask that they can open, in a run of its own."""
    federation = Federation(5, honest=3, fewest=4, values=vectors.shape[1], vectors=vectors)
    federation.keys = run_keys(5, f"run-{tag}")
    federation.roster = Roster.of([keys.card for keys in federation.keys])
    federation.one = OneSum.of(
        federation.roster, terms(5, 3, 4), run=f"run-{tag}", fingerprint=PLAN, round=1,
        kind="train", values=vectors.shape[1], bits=48,
    )  # fmt: skip
    digest, bad = federation.one.digest, (3, 4)
    seen = []
    masked = {
        site: Masked.from_bytes(
            federation.masked(site), neighbours=4, vector_bytes=federation.one.vector_bytes
        )
        for site in range(5)
    }
    collector = SumCollector(federation.one)
    for site in range(5):
        if site != 2:
            collector.add(site, federation.masked(site))
    for _ in range(2):
        for site, request in collector.openings().items():
            collector.take(site, federation.opened(site, request))
    for site in (0, 1, 2):
        value = unpack(masked[site].vector, vectors.shape[1], 48)
        for other in bad:
            key = mask_key(digest, federation.keys[other].pair(digest, federation.keys[site].card))
            add_mask(value, key, -1 if site < other else +1)
        if site != 2:
            shares = {n + 1: o.shares[site] for n, o in collector._opened.items()}
            opened = secret({n: element_from_bytes(s) for n, s in shares.items()})
            add_mask(value, mask_key(digest, element_to_bytes(opened)), -1)
            pair = collector._opened[site].pairs[2]
            add_mask(value, mask_key(digest, pair), -1 if site < 2 else +1)
        else:
            for other in (0, 1):
                pair = collector._opened[other].pairs[2]
                add_mask(value, mask_key(digest, pair), -1 if other > 2 else +1)
        seen.append(centred(unpack(value.tobytes(), vectors.shape[1], 64) << 16 >> 16, 48))
    return np.array(seen)


def test_what_coordinator_and_colluders_see_is_alike_for_inputs_of_the_same_sum() -> None:
    """All that can be taken away is: what is left of honest vectors is uniform, but for the sum of
    the survivors', for zeros as for huge values."""
    values = 3000
    zeros = np.zeros((5, values), dtype=np.int64)
    huge = zeros.copy()
    huge[0], huge[1], huge[2] = 2**44, -(2**44), 2**45
    views = [_view(vectors, tag) for tag, vectors in enumerate((zeros, huge))]
    for site in range(3):
        first, second = views[0][site], views[1][site]
        assert ks_2samp(first, second).pvalue > 1e-6
        for view in (first, second):  # uniform modulo 2^48
            assert abs(view.mean()) < 6 * 2**48 / np.sqrt(12 * values)
            assert abs(view.std() / (2**48 / np.sqrt(12)) - 1) < 0.1
    for vectors, view in zip((zeros, huge), views, strict=True):
        both = centred((view[0] + view[1]).view(np.uint64), 48)
        assert (both == (vectors[0] + vectors[1])).all()  # the sum itself is what they may know
        for pair in ((0, 2), (1, 2)):
            mixed = centred((view[pair[0]] + view[pair[1]]).view(np.uint64), 48)
            assert abs(mixed.std() / (2**48 / np.sqrt(12)) - 1) < 0.1
