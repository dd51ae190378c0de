"""What a run would cost a site, before it takes part."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from pathlib import Path

from lorica.client.admission.backbones import site_backbone
from lorica.client.admission.policy import check_noise, check_plan
from lorica.client.config.site import SiteConfig
from lorica.client.data.reading import read_records
from lorica.client.ledger import Charge, Ledger, MemoryLedger
from lorica.client.training.opening import open_ledger, site_budgets
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
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
    events = privacy.whole
    ledger = open_ledger(config, folder) if (folder / config.ledger.path).exists() else None
    try:
        forecast = (ledger or _unused(config)).forecast(_whole(plan, events))
    finally:
        if ledger is not None:
            ledger.close()
    refusals = []
    try:
        _, sha256 = site_backbone(plan.backbone, config.policy, folder)
        check_plan(plan, config, backbone_sha256=sha256, units=units)
        check_noise(privacy, config.policy)
    except LoricaError as error:
        if error.code is not Code.POLICY_REFUSED:
            raise
        refusals.append(error.detail)
    if forecast.refusal:
        refusals.append(forecast.refusal)
    return Cost(
        privacy,
        units,
        run_epsilon=epsilon(events, plan.privacy.delta),
        spent=forecast.before.lifetime,
        after=forecast.after.lifetime,
        left=config.ledger.lifetime_epsilon - forecast.after.lifetime,
        refusals=refusals,
    )


def _unused(config: SiteConfig) -> Ledger:
    """The ledger that the site would begin with."""
    return MemoryLedger(
        config.ledger.delta,
        unit=config.policy.unit,
        data_set=config.site.name,
        budgets=site_budgets(config),
    )


def _whole(plan: RunPlan, events: tuple[PrivacyEvent, ...]) -> Charge:
    """All that a run does, as one charge of a run that no coordinator can name."""
    return Charge(
        run=f"new {uuid.uuid4().hex}",
        round=0,
        kind="run",
        events=events,
        unit=plan.privacy.unit,
        fingerprint=plan.fingerprint,
        run_epsilon=plan.privacy.epsilon,
        run_delta=plan.privacy.delta,
        whole=events,
    )


def count_units(plan: RunPlan, config: SiteConfig, folder: Path) -> int:
    """Number of units in the site's data."""
    records = read_records(config, folder)
    return len(records) if plan.privacy.unit == "record" else len(set(records.units))
