"""What tests of the audit share: small and packaged plans, and sites that do not pay."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorica.client.ledger import Charge, MemoryLedger
from lorica.client.mechanism.units import Units, joined
from lorica.client.training.sealing import SealedAnswer
from lorica.client.training.trainer import Begun, LocalTrainer, Run
from lorica.common.adapter.state import unpack_state
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.io import load_plan
from lorica.common.plan.stages import stage_of
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.of_plan import RunPrivacy
from lorica.common.wire.messages import Kind, Reply, Request
from lorica.simulations.audit.evidence.findings import Audit
from tests.conftest import SMALL_WORDS, make_small_backbone

RECORDS, LABELS, CLAIM = 300, 32, 4.0


def small_plan(folder: Path) -> RunPlan:
    """Local steps of one site on a backbone of a few thousand weights."""
    generator = random.Random(1)
    labels = [f"label {i:02d}" for i in range(LABELS)]
    with (folder / "notes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "person"])
        for row in range(RECORDS):
            words = generator.choices(SMALL_WORDS, k=3 + row % 5)
            writer.writerow([" ".join(words), generator.choice(labels), f"p{row // 3}"])
    return RunPlan().replace(
        backbone={"source": str(make_small_backbone(folder / "backbone"))},
        adapter={"rank": 16},
        task={"labels": labels},
        data={"train": str(folder / "notes.csv")},
        privacy={"epsilon": CLAIM, "delta": 1e-5},
        training={"mode": "local", "expected_batch_size": 200, "local_steps": 4},
        rounds={"count": 3, "warm_start": 0},
        simulation={"sites": 1},
    )


def default_plan() -> RunPlan:
    """The plan of the package."""
    return load_plan(Path(str(files("lorica.simulations.audit") / "plan.toml")))


class ForgetfulLedger(MemoryLedger):
    """Says that it has charged, and has not."""

    def charge(self, *charges: Charge) -> Any:
        return None


def without_ledger(patch: pytest.MonkeyPatch) -> None:
    """Have trainers answer without a charge."""

    def begin(
        self: LocalTrainer,
        request: Request,
        kind: Kind,
        part: Callable[[RunPrivacy], PrivacyEvent | None],
        sealed: SealedAnswer | None,
    ) -> Begun:
        event = part(self._allow(request))
        assert event is not None
        session = self._open(request.plan)
        session.load(unpack_state(request.blob), stage_of(request.plan, request.round))
        return Begun(request, kind, MemoryLedger(0.1), session, event, sealed)

    def finish(self: LocalTrainer, begun: Begun, run: Run) -> Reply:
        begun.session.read()
        return run(begun.session, begun.event)[0]

    patch.setattr(LocalTrainer, "_begin", begin)
    patch.setattr(LocalTrainer, "_finish", finish)


def drawing(patch: pytest.MonkeyPatch, draw: Callable[..., list[np.ndarray]]) -> None:
    """Have units drawn in another way, whoever asks for them."""
    patch.setattr(Units, "draw", draw)
    patch.setattr(Units, "draw_rows", lambda self, *given: joined(self.draw(*given)))


def refused(audit: Audit) -> str:
    """Why the claim does not stand."""
    with pytest.raises(LoricaError) as caught:
        audit.refuse()
    assert caught.value.code is Code.AUDIT_EXCEEDED
    return caught.value.detail
