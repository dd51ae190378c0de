"""Ledgers of virtual sites: chains and replies in memory, replies within a common limit."""

from __future__ import annotations

import sys

import pytest

from lorica.client.ledger import Charge, MemoryLedger
from lorica.client.ledger.in_memory import MemoryStore, Replies
from lorica.client.ledger.limits import Limits
from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.event import PrivacyEvent

PLAN = "f" * 64


def charge(round: int, rate: float = 1.0, steps: int = 1) -> Charge:
    event = PrivacyEvent(20.0, rate, steps)
    return Charge("run", round, "train", (event,), "record", PLAN, 8.0, 1e-5)


def answered(ledger: MemoryLedger, round: int, reply: bytes) -> None:
    ledger.charge(charge(round))
    ledger.store("run", round, "train", reply)


def test_replies_of_all_ledgers_stay_within_their_limit_and_the_oldest_go_first() -> None:
    replies = Replies(250)
    ledgers = [MemoryLedger(1e-5, replies=replies) for _ in range(4)]
    for number, ledger in enumerate(ledgers):
        answered(ledger, 1, bytes([number]) * 100)
    kept = [ledger for ledger in ledgers if _kept(ledger)]
    assert kept == ledgers[2:]
    assert ledgers[3].stored("run", 1, fingerprint=PLAN) == b"\x03" * 100


def test_a_reply_that_made_room_is_nowhere_in_memory_any_more() -> None:
    replies = Replies(100)
    first, second = (MemoryLedger(1e-5, replies=replies) for _ in range(2))
    reply = bytes([97]) * 100
    answered(first, 1, reply)
    answered(second, 1, b"b" * 100)
    assert sys.getrefcount(reply) == 2, "this name and the argument alone"


def test_what_is_no_longer_kept_is_not_worked_on_again() -> None:
    """As of a ledger in a file: a second reply would be unpaid."""
    replies = Replies(100)
    first, second = (MemoryLedger(1e-5, replies=replies) for _ in range(2))
    answered(first, 1, b"a" * 100)
    answered(second, 1, b"b" * 100)
    for ask in (lambda: first.stored("run", 1, fingerprint=PLAN), lambda: first.charge(charge(1))):
        with pytest.raises(LoricaError, match="no longer kept") as caught:
            ask()
        assert caught.value.code is Code.PRIVACY_BUDGET


def test_a_ledger_alone_keeps_the_newest_reply_of_a_run() -> None:
    ledger = MemoryLedger(1e-5)
    for round in (1, 2):
        answered(ledger, round, b"%d" % round)
    assert ledger.stored("run", 2, fingerprint=PLAN) == b"2"
    with pytest.raises(LoricaError, match="no longer kept"):
        ledger.stored("run", 1, fingerprint=PLAN)


def test_a_transaction_that_fails_leaves_entries_and_replies_as_they_were() -> None:
    ledger = MemoryLedger(1e-5)
    answered(ledger, 1, b"first")
    ledger.charge(charge(2))
    count = ledger.history().count

    def fails() -> None:
        raise RuntimeError("what is kept beside cannot be written")

    with pytest.raises(RuntimeError):
        ledger.store("run", 2, "train", b"second", beside=fails)
    assert ledger.history().count == count
    assert ledger.stored("run", 1, fingerprint=PLAN) == b"first"
    assert ledger.stored("run", 2, fingerprint=PLAN) is None
    assert ledger.store("run", 2, "train", b"second") == b"second"


def test_entries_are_only_appended() -> None:
    store, ledger = MemoryStore(), MemoryLedger(1e-5)
    entry = next(ledger._book.store.entries(0))
    with store.writing():
        store.append(entry)
        with pytest.raises(LoricaError, match="does not follow"):
            store.append(entry)


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_what_is_spent_is_what_the_events_in_the_order_of_the_chain_compose_to(rate: float) -> None:
    """Reference: the composer, of every event by itself."""
    ledger = MemoryLedger(1e-5)
    for round in range(1, 12):
        spent = ledger.charge(charge(round, rate, 1 + round % 3))
    events = ledger.history().events(run="run")
    assert len(events) == 11
    assert spent.run == Limits(None)._composer(1e-5).epsilon(events)


def _kept(ledger: MemoryLedger) -> bool:
    try:
        return ledger.stored("run", 1, fingerprint=PLAN) is not None
    except LoricaError:
        return False
