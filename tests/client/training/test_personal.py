"""What a site keeps for itself under "fedsa": kept privately, noised, never sent, gone on from."""

from __future__ import annotations

import math
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lorica.client.cli import app
from lorica.client.config.site import documented_site
from lorica.client.ledger import MemoryLedger
from lorica.client.mechanism.noise import NoiseSource, SeededNoise
from lorica.client.training.personal import FolderPersonal, MemoryPersonal, PersonalStore
from lorica.client.training.session import Session
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import State, pack_state, unpack_state
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import sent
from lorica.common.plan.tensors import Part, part_of
from lorica.common.saved.folder import load_adapter, save_adapter
from lorica.common.tasks.text_classification import TextClassifier, starting_state
from lorica.common.wire.messages import Reply, Request
from tests.conftest import make_small_backbone

RECORDS = 40
WORDS = ["card", "cash", "fever", "pain", "heart", "skin", "cough", "lost", "new", "money", "my"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    source = make_small_backbone(tmp_path_factory.mktemp("personal") / "backbone")
    return RunPlan().replace(
        backbone={"source": str(source)},
        task={"labels": ["money", "health"]},
        adapter={"rank": 4},
        privacy={"epsilon": 4.0, "delta": 1e-3, "clip_norm": 1.0},
        training={"mode": "local", "expected_batch_size": 8, "local_steps": 3},
        aggregation={"method": "fedsa"},
        rounds={"count": 4, "warm_start": 0},
    )


def some_records() -> Records:
    generator = random.Random(5)
    texts = [" ".join(generator.choices(WORDS, k=3 + i % 7)) for i in range(RECORDS)]
    labels = ["money" if "a" in text else "health" for text in texts]
    return Records(texts, labels, [str(i) for i in range(RECORDS)], [""] * RECORDS)


def site(store: PersonalStore | None = None, ledger: MemoryLedger | None = None) -> LocalTrainer:
    def noise(run: str, round: int) -> NoiseSource:
        return SeededNoise(run, round)

    return LocalTrainer("a", some_records(), noise=noise, personal=store, ledger=ledger)


def start(plan: RunPlan) -> State:
    backbone = load_backbone(plan.backbone)
    return starting_state(TextClassifier(backbone, plan), backbone, plan)


def request(plan: RunPlan, round: int, state: State | None = None, run: str = "r") -> Request:
    """As the coordinator makes it: what stays at sites is not sent."""
    whole = start(plan) if state is None else state
    return Request(plan, run, round, pack_state({n: whole[n] for n in sent(plan, round, whole)}))


def update(reply: Reply) -> State:
    assert reply.status == "ok", reply.reason
    return unpack_state(reply.blob)


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# What is trained, and what of it leaves


def test_the_first_round_is_fedavgs_of_which_a_alone_leaves(plan: RunPlan) -> None:
    """Bit for bit: same batches, same clipping, same noise over all of A, B and head."""
    store = MemoryPersonal()
    found = update(site(store).train(request(plan, 1)))
    average = plan.replace(aggregation={"method": "fedavg"})
    whole = update(site().train(request(average, 1)))
    assert {part_of(name) for name in found} == {Part.A}
    assert all(torch.equal(found[name], whole[name]) for name in found)
    begun, own = start(plan), store.load("r", plan)
    assert {part_of(name) for name in own} == {Part.B, Part.HEAD}
    for name, tensor in own.items():
        assert torch.equal(tensor - begun[name], whole[name]), name


def test_a_personal_part_is_moved_by_as_much_noise_as_a_shared_one(plan: RunPlan) -> None:
    """Same data, other noise: every personal value differs, so none was moved without noise."""
    stores = MemoryPersonal(), MemoryPersonal()
    for store, run in zip(stores, ("r", "s"), strict=True):
        site(store).train(request(plan, 1, run=run))
    one, other = stores[0].load("r", plan), stores[1].load("s", plan)
    for name, tensor in one.items():
        assert bool((tensor != other[name]).all()), name


def test_of_two_attempts_that_race_the_one_that_left_is_the_one_whose_own_part_is_kept(
    plan: RunPlan,
) -> None:
    """One charge, one mechanism: the loser's own part would be a second one in the next round."""
    ledger, store, told = MemoryLedger(1e-3), MemoryPersonal(), []

    def attempt(number: int, meanwhile: Callable[[], object] = int) -> LocalTrainer:
        def noise(run: str, round: int) -> NoiseSource:
            meanwhile()
            return SeededNoise(number, run, round)

        return LocalTrainer("a", some_records(), noise=noise, personal=store, ledger=ledger)

    def overtaken() -> None:
        told.append(attempt(2).train(request(plan, 1)))
        told.append(store.load("r", plan))

    reply = attempt(1, overtaken).train(request(plan, 1))
    winner, own = told
    assert reply.blob == winner.blob and len(ledger.history().charges) == 1
    assert same(store.load("r", plan), own)


def test_neither_coordinator_nor_replay_learns_or_sets_what_is_personal(plan: RunPlan) -> None:
    """A B of the coordinator's choice would let it read A's gradient at points it chose; it
    counts for nothing once the site has its own."""
    store = MemoryPersonal()
    trainer = site(store)
    trainer.train(request(plan, 1))
    own = store.load("r", plan)
    planted = start(plan)
    for name in own:
        planted[name] = torch.full_like(planted[name], 3.0)
    reply = trainer.train(Request(plan, "r", 2, pack_state(planted)))
    honest = site(_with(plan, own)).train(request(plan, 2))
    assert same(update(reply), update(honest))
    blob = reply.blob
    for tensor in (own | store.load("r", plan)).values():
        assert tensor.numpy().tobytes() not in blob


def _with(plan: RunPlan, own: State) -> MemoryPersonal:
    store = MemoryPersonal()
    store.save("r", plan, 1, own)
    return store


# Between rounds


def test_a_round_goes_on_from_the_sites_own_tensors(plan: RunPlan) -> None:
    store = MemoryPersonal()
    trainer = site(store)
    trainer.train(request(plan, 1))
    own = store.load("r", plan)
    second = update(trainer.train(request(plan, 2)))
    again = update(site(_with(plan, own)).train(request(plan, 2)))
    fresh = update(site().train(request(plan, 2)))
    assert same(second, again)
    assert not same(second, fresh)


def test_a_repeated_request_does_not_move_them(plan: RunPlan) -> None:
    store = MemoryPersonal()
    trainer = site(store)
    first = trainer.train(request(plan, 1))
    own = store.load("r", plan)
    assert trainer.train(request(plan, 1)) == first
    assert same(store.load("r", plan), own)


def test_a_round_that_was_lost_begins_with_what_it_began_with(
    plan: RunPlan, tmp_path: Path
) -> None:
    """The process dies after the tensors were kept and before the reply was: the ledger has a
    charge without an answer, and the round is run again."""

    class Dies(MemoryLedger):
        def store(
            self, run: str, round: int, kind: str, reply: bytes, *, beside: Callable[[], None]
        ) -> bytes:
            def keep() -> None:
                beside()
                if round == 2 and not self.died:
                    self.died = True
                    raise KeyboardInterrupt

            return super().store(run, round, kind, reply, beside=keep)

        died = False

    ledger = Dies(plan.privacy.delta)
    trainer = site(FolderPersonal(tmp_path / "personal", "a"), ledger)
    trainer.train(request(plan, 1))
    with pytest.raises(KeyboardInterrupt):
        trainer.train(request(plan, 2))
    restarted = site(FolderPersonal(tmp_path / "personal", "a"), ledger)
    found = update(restarted.train(request(plan, 2)))
    straight = site()
    straight.train(request(plan, 1))
    assert same(found, update(straight.train(request(plan, 2))))


def test_a_site_evaluates_with_its_own_tensors(
    plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[State] = []

    def evaluated(self: Session, *_: object) -> tuple[float, ...]:
        seen.append(self._classifier.adapter_state())
        return (1.0,)

    monkeypatch.setattr(Session, "evaluate", evaluated)
    watched = plan.replace(rounds={"evaluate_every": 2})
    store = MemoryPersonal()
    trainer = site(store)
    for round in (1, 2):
        trainer.train(request(watched, round))
    trainer.evaluate(request(watched, 2))
    own = store.load("r", watched)
    assert all(torch.equal(seen[0][name], tensor) for name, tensor in own.items())
    trainer.train(request(watched, 3))
    store.save("r", watched, 3, {name: tensor + 1 for name, tensor in own.items()})
    assert same(store.load("r", watched, before=3), own), "round 2's evaluation, asked for late"


def test_a_proximal_pull_leaves_what_is_personal_alone(plan: RunPlan) -> None:
    """There is no global value to be pulled to. One step: μ is then the only difference."""
    quiet = plan.replace(privacy={"epsilon": math.inf}, training={"local_steps": 6})
    pulled = quiet.replace(training={"proximal": 1e6})
    store = MemoryPersonal()
    update(site(store).train(request(pulled, 1)))
    begun, own = start(pulled), store.load("r", pulled)
    moved = {name: float((own[name] - begun[name]).abs().max()) for name in own}
    assert all(distance > 1e-3 for distance in moved.values()), moved


# The stores


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> PersonalStore:
    return MemoryPersonal() if request.param == "memory" else FolderPersonal(tmp_path / "p", "a")


def tensors(value: float) -> State:
    return {"x.lora_B.weight": torch.full((3, 2), value), "head.bias": torch.full((2,), -value)}


def test_a_store_keeps_the_last_two_rounds_apart(store: PersonalStore, plan: RunPlan) -> None:
    assert store.load("r", plan) == {}
    for round in (1, 2, 4):
        store.save("r", plan, round, tensors(round))
    assert same(store.load("r", plan), tensors(4))
    assert same(store.load("r", plan, before=4), tensors(2))
    assert store.load("r", plan, before=2) == {}
    store.save("r", plan, 4, tensors(44))
    assert same(store.load("r", plan), tensors(44))
    assert same(store.load("r", plan, before=4), tensors(2))


def test_a_store_keeps_runs_and_plans_apart(store: PersonalStore, plan: RunPlan) -> None:
    store.save("r", plan, 1, tensors(1))
    assert store.load("s", plan) == {}
    assert store.load("r", plan.replace(rounds={"count": 5})) == {}


def test_what_was_kept_does_not_change_with_what_was_given(
    store: PersonalStore, plan: RunPlan
) -> None:
    given = tensors(1)
    store.save("r", plan, 1, given)
    given["head.bias"] += 1
    store.load("r", plan)["head.bias"].add_(1)
    assert same(store.load("r", plan), tensors(1))


def test_files_are_their_owners_alone_and_replaced_whole(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderPersonal(tmp_path / "personal", "St. Mary/ward 3")
    store.save("../../r", plan, 1, tensors(1))
    path = store.path("../../r", plan)
    assert path.parent == tmp_path / "personal" and path.is_file()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fails)
        with pytest.raises(LoricaError) as caught:
            store.save("../../r", plan, 2, tensors(2))
    assert caught.value.code is Code.STORAGE_FULL
    assert same(store.load("../../r", plan), tensors(1))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, b"cut"])
def test_a_damaged_file_is_refused_and_named(plan: RunPlan, tmp_path: Path, damage: bytes) -> None:
    store = FolderPersonal(tmp_path, "a")
    store.save("r", plan, 1, tensors(1))
    path = store.path("r", plan)
    path.write_bytes(damage if damage != b"cut" else path.read_bytes()[:-5])
    with pytest.raises(LoricaError) as caught:
        site(store).train(request(plan, 2))
    assert caught.value.code is Code.PERSONAL_UNREADABLE
    assert str(path) in caught.value.detail and str(path) not in caught.value.public_reason


# The plan


def test_a_plan_that_would_share_nothing_is_refused(plan: RunPlan) -> None:
    for changes in ({"adapter": {"kind": "head"}}, {"training": {"mode": "gradient"}}):
        with pytest.raises(ValueError, match="fedsa"):
            plan.replace(**changes)


def run_cli(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception


def test_a_site_makes_the_shared_adapter_whole(plan: RunPlan, tmp_path: Path) -> None:
    """Coordinator's folder + what the site kept = the adapter that the site evaluates with."""
    backbone = load_backbone(plan.backbone)
    config = tmp_path / "site.toml"
    config.write_text(documented_site("a", "x.csv"), encoding="utf-8")
    store = FolderPersonal(tmp_path / "personal", "a")
    site(store).train(request(plan, 1))
    shared = start(plan)
    save_adapter(tmp_path / "shared", shared, plan, backbone)
    arguments = ["adapter", tmp_path / "shared", "--site", config, "-o"]
    run_cli(*arguments, tmp_path / "own")
    found = load_adapter(tmp_path / "own")
    assert found.plan == plan
    assert same(found.state, shared | store.load("r", plan))
    store.save("s", plan, 1, tensors(1))
    with pytest.raises(LoricaError, match="several: r, s") as caught:
        run_cli(*arguments, tmp_path / "other")
    assert caught.value.code is Code.PERSONAL_ABSENT and not (tmp_path / "other").exists()
    run_cli(*arguments, tmp_path / "other", "--run", "r")
    save_adapter(tmp_path / "shared", shared, plan.replace(aggregation={"method": "ffa"}), backbone)
    with pytest.raises(LoricaError, match="whole as it is"):
        run_cli(*arguments, tmp_path / "third")
