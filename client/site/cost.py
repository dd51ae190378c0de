"""What a run would cost a site, before it takes part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lorica.client.admission.backbones import site_backbone
from lorica.client.admission.policy import check_plan
from lorica.client.config.site import SiteConfig
from lorica.client.data.reading import read_records
from lorica.client.training.opening import open_ledger
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.of_plan import RunPrivacy, run_privacy


@dataclass(frozen=True)
class Cost:
    """A run's cost at a site."""

    privacy: RunPrivacy
    units: int
    """The figure that sample rates are computed from."""
    run_epsilon: float
    """ε of the whole run at the plan's δ."""
    spent: float
    """ε of everything in the ledger so far, at the ledger's δ."""
    after: float
    """The same with the run added."""
    left: float
    """What the lifetime budget has left after the run; below 0: the run will be refused."""
    refusals: list[str]
    """Why the policy or a budget refuses the run; empty when it does not."""

    @property
    def signal_to_noise(self) -> float:
        """Expected batch size over σ: how many clipped gradients of full length it takes to match
        one step's noise in a given direction, turned around. Larger is better; inf without
        noise."""
        event = self.privacy.training
        drawn = event.sample_rate * self.units
        return drawn / event.noise_multiplier if event.noise_multiplier else math.inf


def run_cost(plan: RunPlan, config: SiteConfig, folder: Path) -> Cost:
    """What a run would cost; of the data, only the number of units is looked at.

    Raises:
        LoricaError: LOR-30x unreadable data, LOR-308, LOR-402, LOR-61x ledger.
    """
    units = config.policy.sampling_units or count_units(plan, config, folder)
    privacy = run_privacy(plan, units)
    events = privacy.events(plan.rounds.count, len(plan.evaluation_rounds))
    path = folder / config.ledger.path
    past = []
    if path.exists():
        ledger = open_ledger(config, folder)
        try:
            past = [e for charged in ledger.history().charges for e in charged.charge.events]
        finally:
            ledger.close()
    spent = epsilon(past, config.ledger.delta)
    after = epsilon([*past, *events], config.ledger.delta)
    refusals = []
    try:
        _, sha256 = site_backbone(plan.backbone, config.policy, folder)
        check_plan(plan, config, backbone_sha256=sha256, units=units)
    except LoricaError as error:
        if error.code is not Code.POLICY_REFUSED:
            raise
        refusals.append(error.detail)
    run_epsilon = epsilon(events, plan.privacy.delta)
    run_at_ledger = epsilon(events, config.ledger.delta)
    if after > config.ledger.lifetime_epsilon:
        refusals.append(f"The lifetime budget is {config.ledger.lifetime_epsilon:g}.")
    if run_at_ledger > config.ledger.run_epsilon:
        refusals.append(f"The budget of one run is {config.ledger.run_epsilon:g}.")
    left = config.ledger.lifetime_epsilon - after
    return Cost(privacy, units, run_epsilon, spent, after, left, refusals)


def count_units(plan: RunPlan, config: SiteConfig, folder: Path) -> int:
    """Number of units in the site's data."""
    records = read_records(config, folder)
    return len(records) if plan.privacy.unit == "record" else len(set(records.units))
