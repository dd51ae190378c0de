"""What a run would cost is what the ledger will say: the same limits answer both."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from lorica.client.config.site import SiteConfig, documented_site, load_site
from lorica.client.ledger import Charge
from lorica.client.site.cost import run_cost
from lorica.client.training.opening import open_ledger
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.io import load_plan


@pytest.fixture
def plan() -> RunPlan:
    return load_plan(None, ["rounds.count=6", "task.labels=a,b"])


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    (tmp_path / "records.csv").write_text("text,label\none,a\n")
    text = documented_site("north", "records.csv")
    text = text.replace("sampling_units = 0", "sampling_units = 1000")
    text = text.replace("minimum_units = 100", "minimum_units = 1")
    (tmp_path / "site.toml").write_text(text)
    return load_site(tmp_path / "site.toml")


def charges(plan: RunPlan, config: SiteConfig, folder: Path, run: str) -> list[Charge]:
    """What the trainer charges, round by round."""
    privacy = run_cost(plan, config, folder).privacy
    return [
        Charge(
            run,
            number,
            "train",
            (privacy.of_round(number),),
            plan.privacy.unit,
            plan.fingerprint,
            plan.privacy.epsilon,
            plan.privacy.delta,
        )
        for number in range(1, plan.rounds.count + 1)
    ]


def test_the_budget_of_a_period_refuses_a_second_run_before_it_begins(
    tmp_path: Path, plan: RunPlan, config: SiteConfig
) -> None:
    """Under the default budgets (8 a run, 10 a year, 20 in all) one run of ε = 8 fits a year."""
    assert (config.ledger.run_epsilon, config.ledger.period_epsilon) == (8.0, 10.0)
    ledger = open_ledger(config, tmp_path, create=True)
    assert run_cost(plan, config, tmp_path).refusals == []
    for charge in charges(plan, config, tmp_path, "first"):
        ledger.charge(charge)
    refusals = run_cost(plan, config, tmp_path).refusals
    assert len(refusals) == 1
    assert f"the period {datetime.now(UTC).year}" in refusals[0]
    assert "its budget is 10" in refusals[0]
    with pytest.raises(LoricaError) as caught:  # and the ledger agrees, some rounds on
        for charge in charges(plan, config, tmp_path, "second"):
            ledger.charge(charge)
    assert caught.value.code is Code.PRIVACY_BUDGET
    ledger.close()


def test_what_is_told_to_fit_fits_to_the_last_round(
    tmp_path: Path, plan: RunPlan, config: SiteConfig
) -> None:
    ledger = open_ledger(config, tmp_path, create=True)
    cost = run_cost(plan, config, tmp_path)
    assert cost.refusals == []
    spent = [ledger.charge(charge) for charge in charges(plan, config, tmp_path, "only")][-1]
    assert spent.lifetime == pytest.approx(cost.after, rel=1e-3)
    assert ledger.history().charges[-1].charge.round == plan.rounds.count
    ledger.close()


def test_the_forecast_changes_nothing(tmp_path: Path, plan: RunPlan, config: SiteConfig) -> None:
    open_ledger(config, tmp_path, create=True).close()
    before = (tmp_path / config.ledger.path).read_bytes()
    run_cost(plan, config, tmp_path)
    ledger = open_ledger(config, tmp_path)
    assert ledger.history().count == 1
    ledger.close()
    assert (tmp_path / config.ledger.path).read_bytes() == before
