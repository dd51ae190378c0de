"""A site that lists its coordinators: attacks on its real trainer through its real endpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from lorica.client.admission.answered import Answered
from lorica.client.admission.gate import Admission
from lorica.client.answering.endpoint import answer
from lorica.client.config.site import Policy, SiteConfig, SiteData, SiteIdentity
from lorica.client.ledger import MemoryLedger
from lorica.client.mechanism.noise import SeededNoise
from lorica.client.training.session import Session
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import pack_state
from lorica.common.backbone.files import backbone_sha256
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
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
                sampling_units=100,
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
            admission=Admission(config),
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
    signed = key.sign(Request(plan, "r", 1, start(plan), site="north"), TRAIN)
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
    "a request sent on to another site": (
        lambda request, key: pack_request(key.sign(replace(request, site="south"), TRAIN)),
        Code.REQUEST_MISADDRESSED,
    ),
    "a request for whoever it may be": (
        lambda request, key: pack_request(key.sign(replace(request, site=""), TRAIN)),
        Code.REQUEST_MISADDRESSED,
    ),
    "a request for another site, renamed": (
        lambda request, key: fields(
            pack_request(key.sign(replace(request, site="south"), TRAIN)), site="north"
        ),
        Code.SIGNATURE_INVALID,
    ),
    "another nonce": (
        lambda request, key: fields(pack_request(key.sign(request, TRAIN)), nonce="0" * 32),
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
    content = attack(Request(plan, "r", 1, start(plan), site="north"), key)
    reply = site.answer(TRAIN, content, plan)
    assert reply.status == "refused"
    assert reply.reason == f"{code.value}: {code.entry.title}"
    assert site.charges == 0


def test_a_request_that_was_answered_is_not_answered_when_it_comes_again(
    plan: RunPlan, key: CoordinatorKey
) -> None:
    """Recorded on its way; the coordinator itself signs anew and gets the stored reply."""
    site = Guarded(plan, key.public)
    for kind, round, asked in (
        (CAPABILITIES, 0, Request(plan, "r", site="north")),
        (TRAIN, 1, Request(plan, "r", 1, start(plan), site="north")),
    ):
        recorded = pack_request(key.sign(asked, kind))
        first = site.answer(kind, recorded, plan, round)
        assert first.status == "ok"
        again = site.answer(kind, recorded, plan, round)
        assert (again.status, again.code) == ("refused", Code.REQUEST_REPLAYED.value)
        anew = site.answer(kind, pack_request(key.sign(asked, kind)), plan, round)
        assert anew == first
    assert site.charges == 1


def test_a_refusal_is_an_answer_too(plan: RunPlan, key: CoordinatorKey) -> None:
    """Asked again later, it would tell what has changed."""
    site = Guarded(plan, key.public)
    greedy = plan.replace(privacy={"epsilon": 100.0})
    recorded = pack_request(key.sign(Request(greedy, "r", site="north"), CAPABILITIES))
    codes = [site.answer(CAPABILITIES, recorded, greedy, 0).code for _ in range(2)]
    assert codes == [Code.POLICY_REFUSED.value, Code.REQUEST_REPLAYED.value]


def test_what_was_answered_is_known_after_a_restart_and_forgotten_when_it_is_too_old(
    plan: RunPlan, key: CoordinatorKey, tmp_path: Path
) -> None:
    file, now = tmp_path / "answered", time.time()
    signed = [key.sign(Request(plan, "r", site="north"), CAPABILITIES) for _ in range(3)]
    answered = Answered(file, 24.0)
    answered.note(signed[0])
    answered.note(signed[1])
    again = Answered(file, 24.0)
    for request in signed[:2]:
        with pytest.raises(LoricaError) as caught:
            again.check(request)
        assert caught.value.code is Code.REQUEST_REPLAYED
    again.check(signed[2])
    later = Answered(file, 24.0, clock=lambda: now + 25 * 3600)
    later.check(signed[0])  # its time alone refuses it now
    assert file.read_text() == ""
    for_ever = Answered(tmp_path / "ever", math.inf)
    for_ever.note(signed[0])
    with pytest.raises(LoricaError):
        Answered(tmp_path / "ever", math.inf, clock=lambda: now + 1e9).check(signed[0])


def test_a_request_in_hand_when_the_trainer_died_may_come_again(
    plan: RunPlan, key: CoordinatorKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not answered: the node sends the same bytes on to the next trainer."""
    site = Guarded(plan, key.public)
    recorded = pack_request(key.sign(Request(plan, "r", 1, start(plan), site="north"), TRAIN))
    with monkeypatch.context() as patch:
        patch.setattr(Session, "read", killed)
        with pytest.raises(KeyboardInterrupt):
            site.answer(TRAIN, recorded, plan)
    assert site.answer(TRAIN, recorded, plan).status == "ok"
    assert site.charges == 1


def killed(session: Session) -> None:
    raise KeyboardInterrupt


def test_training_sent_again_as_evaluation_is_refused(plan: RunPlan, key: CoordinatorKey) -> None:
    site = Guarded(plan, key.public)
    content = pack_request(key.sign(Request(plan, "r", 1, start(plan), site="north"), TRAIN))
    refused = site.answer("evaluate", content, plan)
    assert refused.reason.startswith(Code.SIGNATURE_INVALID.value)
    assert site.charges == 0


def test_another_coordinator_is_refused(plan: RunPlan, key: CoordinatorKey, tmp_path: Path) -> None:
    site, other = Guarded(plan, key.public), CoordinatorKey.create(tmp_path / "other.pem")
    signed = other.sign(Request(plan, "r", 1, start(plan), site="north"), TRAIN)
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
