"""Charges whose noise is shared: kept in the chain, and shown for every observer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lorica.client.ledger import Budgets, Charge, FileLedger
from lorica.client.ledger.composer import Composer
from lorica.client.ledger.reports.page import DIGITS, write_report
from lorica.client.ledger.reports.summary import summarise
from lorica.client.ledger.verify import inspect
from lorica.common.display.wording import epsilon_text
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
    summary = summarise(again.history(), Composer(1e-5))
    again.close()
    found = summary.observers
    assert found is not None

    def of(factor: float) -> float:
        return epsilon([PrivacyEvent(4.0 * factor, 1.0, 1), EVENT], 1e-5)

    assert found.sums == pytest.approx(of(math.sqrt(10 / 9)))
    assert found.colluding == pytest.approx(of(1.0))
    assert found.alone == pytest.approx(of(1 / 3))
    write_report(tmp_path / "ledger.html", summary, inspect(path))
    page = (tmp_path / "ledger.html").read_text()
    assert "Who can see how much" in page and "sealed from the coordinator" in page
    for figure in (found.sums, found.colluding, found.alone):
        assert f">{epsilon_text(figure, DIGITS)}</td>" in page


def test_charges_of_a_sites_own_noise_look_as_ever() -> None:
    body = _charge(1, SharedNoise(1, 1)).as_json()
    assert "honest" not in body
    assert Charge.from_json(body) == _charge(1, SharedNoise(1, 1))
    shared = _charge(1, SharedNoise(3, 4))
    assert Charge.from_json(shared.as_json()) == shared
    assert not shared.same_work(_charge(1, SharedNoise(1, 1)))
