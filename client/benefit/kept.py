"""The model that a site keeps, as an adapter folder that stays there."""

from __future__ import annotations

import math
from pathlib import Path

from lorica.client.benefit.compared import Benefit
from lorica.common.backbone.loading import Backbone
from lorica.common.machine.files import write_atomically
from lorica.common.plan import RunPlan
from lorica.common.saved.card import CardResults
from lorica.common.saved.folder import SavedAdapter, save_adapter

FIGURES = "benefit.json"
_PRIVATE = 0o600


def write_kept(folder: Path, benefit: Benefit, saved: SavedAdapter, backbone: Backbone) -> None:
    """Write the kept model and all figures; of a model that was trained here its card says that
    it has no privacy.

    Raises:
        LoricaError: LOR-601, LOR-602.
    """
    kept = benefit.decision.kept
    trained_here = kept in ("own", "tuned")
    plan = without_privacy(saved.plan) if trained_here else saved.plan
    seeded = saved.seeded and kept == "federated"
    save_adapter(folder, benefit.states[kept], plan, backbone, CardResults(seeded=seeded))
    write_atomically(folder / FIGURES, benefit.json(), mode=_PRIVATE)
    folder.chmod(0o700)


def without_privacy(plan: RunPlan) -> RunPlan:
    """The plan of a model that one site trained without noise."""
    if plan.rounds.minimum_sites > 1 or plan.sealed:
        plan = plan.for_one_site()
    return plan.replace(privacy={"epsilon": math.inf})
