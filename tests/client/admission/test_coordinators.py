"""A site that lists its coordinators: attacks on its real trainer through its real endpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from lorica.client.answering.endpoint import answer
from lorica.client.config.site import Policy, SiteConfig, SiteData, SiteIdentity
from lorica.client.ledger import MemoryLedger
from lorica.client.mechanism.noise import SeededNoise
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import pack_state
from lorica.common.backbone.files import backbone_sha256
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import sent
from lorica.common.tasks.text_classification import TextClassifier, starting_state
from lorica.common.wire.messages import (
    CAPABILITIES,
    TRAIN,
    Kind,
    Reply,
    Request,
    pack_request,
    unpack_reply,
)
from lorica.common.wire.signing import CoordinatorKey
from lorica.server.results.folder import RunFolder
from lorica.server.results.observers import Silent
from lorica.server.rounds.loop import RoundLoop
from lorica.simulations.run.engines import run_in_process


@pytest.fixture(params=["gradient", "local"])
def plan(request: pytest.FixtureRequest, small_backbone: Path) -> RunPlan:
    mode = request.param
    return RunPlan().replace(
        backbone={"source": str(small_backbone)},
        task={"labels": ["money", "health"]},
        adapter={"rank": 2},
        privacy={"epsilon": 4.0},
        training={"mode": mode, "lora_rounds": 1, "expected_batch_size": 8, "local_steps": 1},
        rounds={"count": 2, "evaluate_every": 1},
    )


@pytest.fixture
def key(tmp_path: Path) -> CoordinatorKey:
    return CoordinatorKey.create(tmp_path / "key.pem")


class Guarded:
    """A site that answers the coordinators it lists, with its ledger at hand."""

    def __init__(self, plan: RunPlan, *coordinators: str) -> None:
        config = SiteConfig(
            site=SiteIdentity(name="north"),
            data=SiteData(source="unused.csv"),
            policy=Policy(
                coordinators=list(coordinators),
                backbones=[backbone_sha256(Path(plan.backbone.source))],
                backbone_folders=[plan.backbone.source],
                minimum_units=10,
            ),
        )
        texts = ["card money lost", "fever heart pain"] * 20
        records = Records(texts, ["money", "health"] * 20, [str(i) for i in range(40)], [""] * 40)
        self.ledger = MemoryLedger(1e-5)
        self.trainer = LocalTrainer(
            "north",
            records,
            noise=lambda stream, round: SeededNoise(stream, round),
            config=config,
            ledger=self.ledger,
        )

    def answer(self, kind: Kind, content: RecordDict, plan: RunPlan, round: int = 1) -> Reply:
        packed = answer(kind.removeprefix("query."), content, lambda: self.trainer)
        return unpack_reply(packed, fingerprint=plan.fingerprint, round=round)

    @property
    def charges(self) -> int:
        return len(self.ledger.history().charges)


def start(plan: RunPlan) -> bytes:
    backbone = load_backbone(plan.backbone)
    state = starting_state(TextClassifier(backbone, plan), backbone, plan)
    return pack_state({name: state[name] for name in sent(plan, 1, state)})


def fields(record: RecordDict, **changes: str | int) -> RecordDict:
    record["lorica"] = ConfigRecord(dict(record["lorica"]) | changes)  # type: ignore[arg-type]
    return record


def test_a_signed_request_is_answered(plan: RunPlan, key: CoordinatorKey) -> None:
    site = Guarded(plan, "0" * 64, key.public)
    signed = key.sign(Request(plan, "r", 1, start(plan)), TRAIN)
    assert site.answer(TRAIN, pack_request(signed), plan).status == "ok"
    assert site.charges == 1


Attack = Callable[[Request, CoordinatorKey], RecordDict]


def loosened(request: Request, key: CoordinatorKey) -> RecordDict:
    """A plan with a larger ε, its fingerprint corrected, under the old signature."""
    signed = key.sign(request, TRAIN)
    return pack_request(replace(signed, plan=request.plan.replace(privacy={"epsilon": 8.0})))


def swapped(request: Request, key: CoordinatorKey) -> RecordDict:
    """Another adapter, as for a model inversion, in the middle of the way."""
    record = pack_request(key.sign(request, TRAIN))
    data = record["adapter"]["adapter"].data[:-1] + b"\x01"  # type: ignore[union-attr,operator]
    array = Array(dtype="uint8", shape=(len(data),), stype="safetensors", data=data)
    record["adapter"] = ArrayRecord({"adapter": array})
    return record


ATTACKS: dict[str, tuple[Attack, Code]] = {
    "a tampered plan": (loosened, Code.SIGNATURE_INVALID),
    "a swapped adapter": (swapped, Code.SIGNATURE_INVALID),
    "a query sent again as training": (
        lambda request, key: pack_request(key.sign(request, CAPABILITIES)),
        Code.SIGNATURE_INVALID,
    ),
    "a round sent again as another": (
        lambda request, key: fields(pack_request(key.sign(request, TRAIN)), round=2),
        Code.SIGNATURE_INVALID,
    ),
    "a run sent again as another": (
        lambda request, key: fields(pack_request(key.sign(request, TRAIN)), run="fresh budget"),
        Code.SIGNATURE_INVALID,
    ),
    "no signature": (lambda request, key: pack_request(request), Code.REQUEST_UNSIGNED),
    "a stripped signature": (
        lambda request, key: fields(pack_request(key.sign(request, TRAIN)), signature=""),
        Code.REQUEST_UNSIGNED,
    ),
}


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_on_the_way_is_refused_and_costs_nothing(
    plan: RunPlan, key: CoordinatorKey, name: str
) -> None:
    attack, code = ATTACKS[name]
    site = Guarded(plan, key.public)
    content = attack(Request(plan, "r", 1, start(plan)), key)
    reply = site.answer(TRAIN, content, plan)
    assert reply.status == "refused"
    assert reply.reason == f"{code.value}: {code.entry.title}"
    assert site.charges == 0


def test_training_sent_again_as_evaluation_is_refused(plan: RunPlan, key: CoordinatorKey) -> None:
    site = Guarded(plan, key.public)
    content = pack_request(key.sign(Request(plan, "r", 1, start(plan)), TRAIN))
    refused = site.answer("evaluate", content, plan)
    assert refused.reason.startswith(Code.SIGNATURE_INVALID.value)
    assert site.charges == 0


def test_another_coordinator_is_refused(plan: RunPlan, key: CoordinatorKey, tmp_path: Path) -> None:
    site, other = Guarded(plan, key.public), CoordinatorKey.create(tmp_path / "other.pem")
    signed = other.sign(Request(plan, "r", 1, start(plan)), TRAIN)
    refused = site.answer(TRAIN, pack_request(signed), plan)
    assert refused.reason.startswith(Code.COORDINATOR_UNKNOWN.value)
    posing = replace(signed, coordinator=key.public)
    refused = site.answer(TRAIN, pack_request(posing), plan)
    assert refused.reason.startswith(Code.SIGNATURE_INVALID.value)
    assert site.charges == 0


def test_the_signature_is_looked_at_before_plan_round_and_policy(
    plan: RunPlan, key: CoordinatorKey
) -> None:
    """A stranger learns nothing about what the site would allow."""
    site = Guarded(plan, key.public)
    bad = plan.replace(privacy={"epsilon": 1000.0}, backbone={"source": "absent/"})
    for kind in ("query.capabilities", "train", "evaluate"):
        refused = site.answer(kind, pack_request(Request(bad, "r", 99)), bad, 99)
        assert refused.reason.startswith(Code.REQUEST_UNSIGNED.value)


def test_a_site_that_lists_no_coordinator_answers_any(plan: RunPlan, key: CoordinatorKey) -> None:
    site = Guarded(plan)
    for request in (Request(plan, "r"), replace(key.sign(Request(plan, "r"), TRAIN), round=0)):
        assert site.answer(CAPABILITIES, pack_request(request), plan, 0).status == "ok"


@pytest.mark.parametrize("wrong", ["0" * 63, "0" * 65, "g" * 64, "A" * 64, ""])
def test_a_listed_key_that_is_no_key_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="coordinators"):
        Policy(coordinators=[wrong])


def test_a_whole_run_over_sites_that_list_their_coordinator(
    plan: RunPlan, key: CoordinatorKey, tmp_path: Path
) -> None:
    """The round loop signs what it sends, of every kind; without a key nobody takes part."""
    backbone = load_backbone(plan.backbone)

    def loop(name: str, signing: CoordinatorKey | None, sites: dict[str, LocalTrainer]) -> None:
        folder = RunFolder(tmp_path / name)
        folder.create(plan)
        run_in_process(
            lambda grid: RoundLoop(
                grid,
                plan,
                folder,
                run=name,
                start=lambda: starting_state(TextClassifier(backbone, plan), backbone, plan),
                evaluate=None,
                observer=Silent(),
                key=signing,
            ).run(),
            sites,
        )

    site = Guarded(plan, key.public)
    loop("signed", key, {"north": site.trainer})
    done = site.ledger.history().done
    assert set(done) == {("signed", r, kind) for r in (1, 2) for kind in ("train", "evaluate")}
    with pytest.raises(Exception, match="LOR-507"):
        loop("unsigned", None, {"north": site.trainer})
