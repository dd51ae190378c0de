"""Charges whose noise is shared: kept in the chain, and shown for every observer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lorica.client.ledger import Budgets, Charge, FileLedger
from lorica.client.ledger.composer import Composer
from lorica.client.ledger.reports.summary import summarise
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.shared_noise import SharedNoise

EVENT = PrivacyEvent(4.0, 1.0, 1)


def _charge(round: int, shared: SharedNoise) -> Charge:
    return Charge("run", round, "train", (EVENT,), "record", "f" * 64, shared=shared)


def test_a_ledger_shows_what_every_observer_can_have_learned(tmp_path: Path) -> None:
    budgets = Budgets(100.0, 100.0)
    path = tmp_path / "ledger.sqlite"
    ledger = FileLedger(path, data_set="d", unit="record", delta=1e-5, budgets=budgets, create=True)
    ledger.charge(_charge(1, SharedNoise(9, 10)))
    ledger.charge(_charge(2, SharedNoise(1, 1)))
    ledger.close()
    again = FileLedger(path, data_set="d", unit="record", delta=1e-5, budgets=budgets, create=False)
    found = summarise(again.history(), Composer(1e-5)).observers
    again.close()
    assert found is not None

    def of(factor: float) -> float:
        return epsilon([PrivacyEvent(4.0 * factor, 1.0, 1), EVENT], 1e-5)

    assert found.sums == pytest.approx(of(math.sqrt(10 / 9)))
    assert found.colluding == pytest.approx(of(1.0))
    assert found.alone == pytest.approx(of(1 / 3))


def test_charges_of_a_sites_own_noise_look_as_ever() -> None:
    body = _charge(1, SharedNoise(1, 1)).as_json()
    assert "honest" not in body
    assert Charge.from_json(body) == _charge(1, SharedNoise(1, 1))
    shared = _charge(1, SharedNoise(3, 4))
    assert Charge.from_json(shared.as_json()) == shared
    assert not shared.same_work(_charge(1, SharedNoise(1, 1)))
