"""Rule 1 as a test: everything a site sends is on the page docs/what-leaves-a-site.md."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto

from lorica.client.admission.gate import Admission
from lorica.client.ledger import MemoryLedger
from lorica.client.ledger.head import Heads
from lorica.common.backbone.files import backbone_sha256
from lorica.common.backbone.loading import load_backbone
from lorica.common.plan import RunPlan
from lorica.common.plan.io import load_plan
from lorica.common.tasks.run_data import load_data
from lorica.common.tasks.text_classification import TextClassifier, starting_state
from lorica.server.results.folder import RunFolder
from lorica.server.results.observers import Silent
from lorica.server.rounds.loop import RoundLoop
from lorica.simulations.run.grid import InProcessGrid
from lorica.simulations.run.sites import make_trainers
from tests.conftest import SMALL_WORDS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "what-leaves-a-site.md"
SECRET = "zebrafish"


class Listening(InProcessGrid):
    """A grid that keeps every reply that came back."""

    def __init__(self, app: ClientApp, nodes: int) -> None:
        super().__init__(app, nodes)
        self.replies: list[Message] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = list(super().pull_messages(message_ids))
        self.replies += found
        return found


@pytest.fixture(params=["gradient", "local", "sum"])
def plan(request: pytest.FixtureRequest, tmp_path: Path, small_backbone: Path) -> RunPlan:
    data = tmp_path / "data.csv"
    with data.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "patient"])
        for i in range(120):
            words = [SMALL_WORDS[(i * 7 + k) % len(SMALL_WORDS)] for k in range(4)]
            writer.writerow([" ".join([*words, SECRET]), "ab"[i % 2], f"p{i // 3}"])
    return load_plan(
        None,
        [
            f"backbone.source={small_backbone}",
            f"data.train={data}",
            "privacy.unit=patient",
            "privacy.evaluation_metrics=accuracy,loss,per_label",
            "task.labels=a,b",
            f"training.mode={'gradient' if request.param == 'sum' else request.param}",
            *(["privacy.benefit_epsilon=2"] if request.param == "gradient" else []),
            *(["privacy.trust=sum", "privacy.honest_sites=2"] if request.param == "sum" else []),
            "training.lora=always",
            "training.lora_rounds=1",
            "training.expected_batch_size=4",
            "training.local_steps=1",
            "rounds.count=2",
            "rounds.evaluate_every=1",
            "simulation.sites=3",
        ],
    )


def sent_by_sites(plan: RunPlan, folder: Path) -> list[Message]:
    """All replies of a whole run in which one site cannot take part."""
    from lorica.client.answering.endpoint import make_client_app

    trainers = list(make_trainers(load_data(plan).train, plan).values())
    for trainer in trainers:  # as sites of their own, whose ledgers' heads travel
        trainer._ledger = MemoryLedger(plan.privacy.delta, unit=plan.privacy.unit)
        trainer._heads = Heads(trainer._ledger, bytes(32))

    def trainer_of(context: Context) -> object:
        node = int(context.node_config["partition-id"])
        if node == len(trainers):
            raise RuntimeError(f"the file of {SECRET} is gone")
        return trainers[node]

    grid = Listening(make_client_app(trainer_of), len(trainers) + 1)  # type: ignore[arg-type]
    backbone = load_backbone(plan.backbone)
    run = RunFolder(folder)
    run.create(plan)
    RoundLoop(
        grid,
        plan,
        run,
        run="walk",
        start=lambda: starting_state(TextClassifier(backbone, plan), backbone, plan),
        evaluate=None,
        observer=Silent(),
    ).run()
    return grid.replies


DECLARED = {"lorica.budget", "lorica.budget_left", "lorica.signature"}
"""What only a site sends whose policy declares it (test_declared_budget.py), or that has a key
(tests/server/coordinator/test_directory.py)."""


def fields_of(message: Message) -> set[str]:
    return {f"{name}.{key}" for name, record in message.content.items() for key in record}


def test_every_field_that_a_site_sends_is_on_the_page(plan: RunPlan, tmp_path: Path) -> None:
    listed = set(re.findall(r"^\| `(\w+\.\w+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    seen: dict[str, set[str]] = {}
    for reply in sent_by_sites(plan, tmp_path / "run"):
        assert not reply.has_error(), "an error reply would carry an exception's text"
        seen.setdefault(reply.metadata.message_type, set()).update(fields_of(reply))
    assert set(seen) == {"query.capabilities", "train", "evaluate"}
    assert listed >= DECLARED
    assert len(json.loads((tmp_path / "heads.json").read_text())) == 3, "one for every site"
    others = {"adapter.adapter", "counts.counts"} if plan.sealed else {"sealed.sealed"}
    said = set().union(*seen.values())
    assert said == listed - DECLARED - others, "page and messages must say the same"
    assert "adapter.adapter" not in seen["evaluate"] | seen["query.capabilities"]
    assert "counts.counts" not in seen["train"] | seen["query.capabilities"]


def test_no_text_of_a_record_and_no_exception_is_in_any_reply(
    plan: RunPlan, tmp_path: Path
) -> None:
    for reply in sent_by_sites(plan, tmp_path / "run"):
        packed = message_to_proto(reply).SerializeToString()
        assert SECRET.encode() not in packed
        assert b"patient" not in packed
        code = reply.content["lorica"].get("code", "")
        assert not code or re.fullmatch(r"LOR-\d{3}", str(code))


def test_a_site_that_declares_nothing_sends_no_count(plan: RunPlan, tmp_path: Path) -> None:
    from lorica.client.config.site import Policy, SiteConfig, SiteData, SiteIdentity
    from lorica.client.mechanism.noise import SecureNoise
    from lorica.client.training.trainer import LocalTrainer
    from lorica.common.wire.messages import Request

    plan = plan.replace(privacy={"trust": "none", "honest_sites": 0})  # sealed sites need peers
    backbone = load_backbone(plan.backbone)
    config = SiteConfig(
        site=SiteIdentity(name="north"),
        data=SiteData(source="x.csv", unit="patient"),
        policy=Policy(
            sampling_units=100,
            backbones=[backbone_sha256(backbone.folder)],
            backbone_folders=[str(backbone.folder)],
            unit="patient",
            minimum_units=5,
            metrics=["accuracy", "loss", "per_label"],
            benefit_epsilon=2.0,
        ),
    )
    records = load_data(plan).train
    trainer = LocalTrainer(
        "north",
        records,
        noise=lambda stream, round: SecureNoise(),
        admission=Admission(config),
    )
    assert trainer.capabilities(Request(plan, "r")).weight == 0
