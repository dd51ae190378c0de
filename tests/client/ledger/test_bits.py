"""Bits by randomised response in a ledger: kept as what they are, never charged too little."""

from __future__ import annotations

import csv
import io
from contextlib import closing
from pathlib import Path

import pytest

from lorica.client.ledger import Budgets, Charge
from lorica.client.ledger.composer import Composer
from lorica.client.ledger.reports.export import as_csv
from lorica.client.ledger.reports.summary import summarise
from lorica.client.ledger.verify import inspect
from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from tests.client.ledger.helpers import PLAN, charge, open_ledger

BIT = PrivacyEvent.of_response(1.5)


def bit(run: str = "run", round: int = 9) -> Charge:
    return Charge(run, round, "benefit", (BIT,), "record", PLAN)


def test_a_bit_is_read_back_as_one_and_adds_its_epsilon(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(open_ledger(path)) as ledger:
        before = ledger.charge(charge(1)).run
        after = ledger.charge(bit()).run
        assert after == pytest.approx(before + 1.5, rel=1e-3)
    with closing(open_ledger(path, create=False)) as ledger:
        history = ledger.history()
        assert history.charges[-1].charge == bit()
        assert BIT in history.events() and BIT in history.of_run("run").merged()
        assert ledger.spending("run").run == pytest.approx(after)
        rows = list(csv.DictReader(io.StringIO(as_csv(history))))
        assert [row["response"] for row in rows] == ["", "1.5"]
    found = inspect(path)
    assert not found.problems
    summary = summarise(found.history, Composer(found.history.delta))
    assert summary.epsilon == pytest.approx(after, rel=1e-3)
    assert summary.rdp is not None and summary.rdp >= summary.epsilon


def test_bits_of_many_runs_are_held_to_the_lifetimes_budget(tmp_path: Path) -> None:
    """By the filter, for who asks next has seen what came before: at least their divergences."""
    budgets = Budgets(lifetime=6.0, run=6.0)
    told = 0
    with closing(open_ledger(tmp_path / "ledger.sqlite", budgets=budgets)) as ledger:
        for number in range(20):
            try:
                spent = ledger.charge(bit(f"run {number}")).lifetime
            except LoricaError as error:
                assert error.code is Code.PRIVACY_BUDGET
                break
            told += 1
            assert epsilon([BIT] * told, 1e-5) <= 1.5 * told + 1e-9
            assert spent <= 6.0 + 1e-9
        assert 2 <= told <= 4
        assert len(ledger.history().charges) == told
