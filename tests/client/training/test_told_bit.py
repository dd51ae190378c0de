"""The bit about the guard at a site: charged once, before it is looked at; what a coordinator that
lies, asks again or replays gets for it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict
from tokenizers import NormalizedString

from lorica.client.admission.gate import Admission
from lorica.client.answering.endpoint import answer
from lorica.client.config.site import Policy, SiteConfig, SiteData, SiteIdentity
from lorica.client.ledger import Budgets, MemoryLedger
from lorica.client.mechanism.noise import RequestNoise
from lorica.client.training.trainer import BENEFIT, LocalTrainer
from lorica.common.adapter.state import State, pack_state
from lorica.common.backbone.files import backbone_sha256
from lorica.common.backbone.loading import backbone_of
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import sent
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.tasks import task_of
from lorica.common.wire.messages import EVALUATE, Reply, Request, pack_request, unpack_reply
from lorica.common.wire.signing import CoordinatorKey
from tests.client.training.test_trainer import some_records
from tests.conftest import make_small_backbone

BIT = 2.0
SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_backbone(tmp_path_factory.mktemp("told") / "backbone")


@pytest.fixture
def plan(tiny: Path) -> RunPlan:
    return RunPlan().replace(
        backbone={"source": str(tiny)},
        task={"labels": ["money", "health"]},
        privacy={"epsilon": 6.0, "delta": 1e-3, "benefit_epsilon": BIT},
        training={"lora": "never"},
        rounds={"count": 3},
    )


@pytest.fixture
def state(plan: RunPlan) -> State:
    return task_of(plan).start(backbone_of(plan))


def a_site(ledger: MemoryLedger | None = None, **options: Any) -> tuple[LocalTrainer, MemoryLedger]:
    held = ledger or MemoryLedger(1e-3, budgets=Budgets(8.0, 8.0))
    found = LocalTrainer("a", some_records(), noise=RequestNoise(SECRET), ledger=held, **options)
    return found, held


def asked(plan: RunPlan, state: State, run: str = "r", round: int = 4) -> Request:
    return Request(plan, run, round, pack_state({n: state[n] for n in sent(plan, round, state)}))


def test_it_is_one_bit_that_is_charged_as_what_it_is(plan: RunPlan, state: State) -> None:
    site, ledger = a_site()
    reply = site.evaluate(asked(plan, state))
    assert reply.status == "ok" and reply.counts in ((0.0,), (1.0,))
    assert (reply.blob, reply.sealed) == (b"", b"")
    (charged,) = ledger.history().charges
    assert charged.charge.key == ("r", 4, BENEFIT)
    assert charged.charge.events == (PrivacyEvent.of_response(BIT),)
    assert charged.charge.events[0] in charged.charge.whole
    assert charged.charge.as_json()["mechanism"] == "randomised response"
    assert type(charged.charge).from_json(charged.charge.as_json()) == charged.charge
    assert charged.spent.lifetime == pytest.approx(BIT)


def test_asking_again_gets_the_same_whatever_model_is_sent(plan: RunPlan, state: State) -> None:
    """Many models would be many bits: a run has one."""
    site, ledger = a_site()
    first = site.evaluate(asked(plan, state))
    for number in range(5):
        other = {name: tensor + number for name, tensor in state.items()}
        assert site.evaluate(asked(plan, other)).counts == first.counts
    assert len(ledger.history().charges) == 1
    again, _ = a_site(ledger)
    assert again.evaluate(asked(plan, state)).counts == first.counts


def test_another_run_pays_anew_and_the_budget_ends_it(plan: RunPlan, state: State) -> None:
    """The whole run must fit, so not even its bit is told where the run does not."""
    site, ledger = a_site()
    site.evaluate(asked(plan, state))
    with pytest.raises(LoricaError) as caught:
        site.evaluate(asked(plan, state, run="another"))
    assert caught.value.code is Code.PRIVACY_BUDGET
    assert len(ledger.history().charges) == 1


def test_a_run_with_its_bit_spends_what_its_plan_says(plan: RunPlan, state: State) -> None:
    site, ledger = a_site()
    for round in range(1, 4):
        site.train(asked(plan, state, round=round))
    site.evaluate(asked(plan, state))
    spent = ledger.history().charges[-1].spent.run
    assert 5.9 < spent <= 6.0
    before = ledger.history().charges[-2].spent.run
    assert before == pytest.approx(spent - BIT, abs=0.01)


@pytest.mark.parametrize("round", [0, 3, 5, 1000])
def test_it_is_told_after_the_last_round_alone(plan: RunPlan, state: State, round: int) -> None:
    site, ledger = a_site()
    with pytest.raises(LoricaError, match="no evaluation"):
        site.evaluate(asked(plan, state, round=round))
    silent = plan.replace(privacy={"benefit_epsilon": 0.0})
    with pytest.raises(LoricaError, match="no evaluation"):
        site.evaluate(asked(silent, state))
    assert not ledger.history().charges


def test_a_larger_epsilon_in_the_same_run_is_another_plan(plan: RunPlan, state: State) -> None:
    site, ledger = a_site()
    site.evaluate(asked(plan, state))
    with pytest.raises(LoricaError) as caught:
        site.evaluate(asked(plan.replace(privacy={"benefit_epsilon": 5.0}), state))
    assert caught.value.code is Code.PLAN_MISMATCH
    assert len(ledger.history().charges) == 1


def test_a_model_that_is_none_is_refused_before_anything_is_charged(
    plan: RunPlan, state: State
) -> None:
    site, ledger = a_site()
    for spoilt in (
        state | {"head.weight": state["head.weight"] * math.nan},
        state | {"head.weight": state["head.weight"][:, :1]},
    ):
        with pytest.raises(LoricaError):
            site.evaluate(asked(plan, spoilt))
    assert not ledger.history().charges


def test_what_fails_in_the_comparison_is_told_like_anything_else(
    plan: RunPlan, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No refusal that would tell, unnoised, that it failed: the reply is that of no harm."""

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("a record's own fault")

    site, _ = a_site()
    expected = site.evaluate(asked(plan, state))
    monkeypatch.setattr("lorica.client.training.trainer.keeps_own", lambda *_: False)
    harmless = a_site()[0].evaluate(asked(plan, state))
    monkeypatch.undo()
    monkeypatch.setattr("lorica.client.benefit.told.compare_models", fails)
    found = a_site()[0].evaluate(asked(plan, state))
    assert found == harmless and found.status == expected.status == "ok"


@pytest.mark.parametrize("where", ["session.Session.read", "trainer.own_records"])
def test_records_that_cannot_be_encoded_or_divided_are_told_like_any_others(
    plan: RunPlan, state: State, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A refusal would say so without noise. With the secret here, no harm is told as 0 or as 1."""

    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("a record's own fault")

    monkeypatch.setattr("lorica.client.training.trainer.keeps_own", lambda *_: False)
    harmless = a_site()[0].evaluate(asked(plan, state))
    monkeypatch.undo()
    monkeypatch.setattr(f"lorica.client.training.{where}", fails)
    site, ledger = a_site()
    found = site.evaluate(asked(plan, state))
    assert found.status == "ok" and found.counts in ((0.0,), (1.0,))
    if where == "trainer.own_records":
        assert found == harmless
    assert len(ledger.history().charges) == 1


def panics(*_: Any, **__: Any) -> None:
    """A real panic in Rust: no Exception, so that what catches those lets it through."""
    NormalizedString("a record's text").filter(lambda letter: 1 / 0)


@pytest.mark.parametrize(
    "where", ["benefit.told.compare_models", "training.session.Session.read", "admission.gate"]
)
def test_a_panic_of_the_tokenizer_is_a_failure_like_any_other(
    plan: RunPlan, state: State, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Else the process's fate would tell of a record without noise, again and again."""
    where += ".check_records" if where == "admission.gate" else ""
    monkeypatch.setattr(f"lorica.client.{where}", panics)
    site, ledger = a_site()
    request = asked(plan, state, round=1 if where.endswith("read") else 4)
    method = "train" if where.endswith("read") else "evaluate"
    found = unpacked(answer(method, pack_request(request), lambda: site), request)
    again = unpacked(answer(method, pack_request(request), lambda: site), request)
    assert replace(found, counts=()) == replace(again, counts=())
    if where.startswith("benefit"):
        assert found.counts in ((0.0,), (1.0,)) and again == found
    else:
        assert found.code == Code.DATA_UNFIT.value
    assert len(ledger.history().charges) == (0 if where.startswith("admission") else 1)


def unpacked(packed: RecordDict, request: Request) -> Reply:
    return unpack_reply(packed, fingerprint=request.plan.fingerprint, round=request.round)


def with_policy(plan: RunPlan, **policy: Any) -> Admission:
    folder = Path(plan.backbone.source)
    return Admission(
        SiteConfig(
            site=SiteIdentity(name="a"),
            data=SiteData(source="x.csv"),
            policy=Policy(
                sampling_units=40,
                minimum_units=10,
                maximum_delta=1e-3,
                backbones=[backbone_sha256(folder)],
                backbone_folders=[str(folder)],
                **policy,
            ),
        )
    )


def test_a_site_whose_policy_says_nothing_refuses_the_whole_plan(
    plan: RunPlan, state: State
) -> None:
    plan = plan.replace(privacy={"delta": 1e-4})
    for allowed in (0.0, 1.9):
        site, ledger = a_site(admission=with_policy(plan, benefit_epsilon=allowed))
        for ask in (site.capabilities, site.evaluate):
            with pytest.raises(LoricaError, match="one bit about the site's guard") as caught:
                ask(asked(plan, state))
            assert caught.value.code is Code.POLICY_REFUSED
        assert not ledger.history().charges
    site, _ = a_site(admission=with_policy(plan, benefit_epsilon=2.0))
    assert site.evaluate(asked(plan, state)).status == "ok"


def test_a_recorded_request_is_good_for_one_answer(plan: RunPlan, state: State) -> None:
    plan = plan.replace(privacy={"delta": 1e-4})
    key = CoordinatorKey(Ed25519PrivateKey.generate())
    admission = with_policy(plan, benefit_epsilon=2.0, coordinators=[key.public])
    site, ledger = a_site(admission=admission)
    signed = key.sign(replace(asked(plan, state), site="a"), EVALUATE)
    assert site.evaluate(signed).status == "ok"
    with pytest.raises(LoricaError) as caught:
        site.evaluate(signed)
    assert caught.value.code is Code.REQUEST_REPLAYED
    with pytest.raises(LoricaError):
        site.evaluate(asked(plan, state))  # unsigned
    assert len(ledger.history().charges) == 1


def test_where_sites_keep_a_part_the_guard_judges_it_with_that_part(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = RunPlan().replace(
        backbone={"source": str(tiny)},
        task={"labels": ["money", "health"]},
        adapter={"rank": 2},
        aggregation={"method": "fedsa"},
        privacy={"epsilon": 6.0, "delta": 1e-3, "benefit_epsilon": BIT},
        training={"mode": "local", "expected_batch_size": 8, "local_steps": 1},
        rounds={"count": 1, "warm_start": 0},
    )
    state = task_of(plan).start(backbone_of(plan))
    site, _ = a_site()
    site.train(asked(plan, state, round=1))
    judged: dict[str, Any] = {}

    def seen(plan: RunPlan, backbone: Any, own: Any, received: State) -> bool:
        judged.update(received)
        return True

    monkeypatch.setattr("lorica.client.training.trainer.keeps_own", seen)
    site.evaluate(asked(plan, state, round=2))
    kept = site._personal.load("r", plan)
    assert kept and all((judged[name] == tensor).all() for name, tensor in kept.items())
    assert set(judged) == set(state)
