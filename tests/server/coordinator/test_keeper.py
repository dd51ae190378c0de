"""Runs are kept going: started, taken up again, stopped, given up; whatever Flower says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.lock import only_one
from lorica.common.plan import RunPlan
from lorica.server.coordinator import keeper as keeping
from lorica.server.coordinator import orders
from lorica.server.coordinator.control import FlowerRun
from lorica.server.coordinator.home import CoordinatorConfig, CoordinatorHome
from lorica.server.coordinator.keeper import MOST_FRUITLESS, Keeper
from lorica.server.coordinator.orders import LOCK, RunPlace, new_order
from lorica.server.coordinator.submit import resume, stop, submit
from lorica.server.results.folder import ROUNDS


class FakeSuperLink:
    """What a SuperLink answers about Flower runs."""

    def __init__(self) -> None:
        self.runs: dict[int, FlowerRun] = {}
        self.stopped: list[int] = []

    def start(self, bundle: bytes, run: str) -> int:
        number = len(self.runs) + 1
        self.runs[number] = FlowerRun(number, False, "running", "")
        return number

    def stop(self, run: int) -> None:
        self.stopped.append(run)
        self.dies(run)

    def run(self, run: int) -> FlowerRun | None:
        return self.runs.get(run)

    def dies(self, run: int) -> None:
        self.runs[run] = FlowerRun(run, True, "finished:failed", "it died")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CoordinatorHome:
    monkeypatch.setenv("LORICA_STORE", "none")
    monkeypatch.setattr(keeping, "build_bundle", lambda: b"bundle")
    home = CoordinatorHome(tmp_path / "c")
    home.create(CoordinatorConfig())
    return home


@pytest.fixture
def superlink() -> FakeSuperLink:
    return FakeSuperLink()


@pytest.fixture
def keeper(home: CoordinatorHome, superlink: FakeSuperLink) -> Iterator[Keeper]:
    yield Keeper(home, superlink)  # type: ignore[arg-type]


def ordered(home: CoordinatorHome, run: str = "a") -> RunPlace:
    place = RunPlace(home.runs, run)
    place.folder.create(RunPlan().replace(task={"labels": ["x", "y"]}))
    place.write(new_order(run, "tester"))
    return place


def test_a_submitted_run_is_started_once(
    home: CoordinatorHome, superlink: FakeSuperLink, keeper: Keeper
) -> None:
    place = ordered(home)
    for _ in range(3):
        keeper.look()
    assert place.order().flower_runs == [1] and list(superlink.runs) == [1]


def test_on_a_full_disk_nothing_is_started_that_could_not_be_noted(
    home: CoordinatorHome,
    superlink: FakeSuperLink,
    keeper: Keeper,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = ordered(home)

    def full(path: Path, content: bytes | str) -> None:
        raise LoricaError(Code.STORAGE_FULL, f"{path} could not be written: the disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(orders, "write_atomically", full)
        for _ in range(3):
            keeper.look()
    assert not superlink.runs
    assert caplog.text.count("LOR-601") == 1  # said once
    keeper.look()
    assert place.order().flower_runs == [1]


def test_a_run_whose_serverapp_died_is_taken_up_again_at_once(
    home: CoordinatorHome, superlink: FakeSuperLink, keeper: Keeper
) -> None:
    place = ordered(home)
    keeper.look()
    with only_one(place.path / LOCK, "ServerApp"):
        keeper.look()
        assert place.order().flower_runs == [1]
    keeper.look()  # the lock is free and the run not over: Flower has not noticed yet
    assert place.order().flower_runs == [1, 2]
    assert superlink.stopped == [1]  # late replies to it have no place any more


def test_a_run_that_flower_forgot_is_taken_up_again(
    home: CoordinatorHome, superlink: FakeSuperLink, keeper: Keeper
) -> None:
    place = ordered(home)
    keeper.look()
    superlink.runs.clear()  # its database was lost
    keeper.look()
    assert len(place.order().flower_runs) == 2


def test_a_run_that_is_over_is_left_alone(
    home: CoordinatorHome, superlink: FakeSuperLink, keeper: Keeper
) -> None:
    place = ordered(home)
    for state in ("finished", "failed", "stopped"):
        place.change(state=state)
        keeper.look()
    assert not superlink.runs


def test_deaths_without_a_round_end_a_run_and_rounds_count_anew(
    home: CoordinatorHome, superlink: FakeSuperLink, keeper: Keeper
) -> None:
    place = ordered(home)
    keeper.look()
    for _ in range(MOST_FRUITLESS - 1):
        superlink.dies(max(superlink.runs))
        keeper.look()
    assert place.order().fruitless == MOST_FRUITLESS - 1
    with (place.path / ROUNDS).open("a") as file:
        file.write("{}\n")
    superlink.dies(max(superlink.runs))
    keeper.look()
    assert place.order().fruitless == 0 and not place.order().over
    for _ in range(MOST_FRUITLESS):
        superlink.dies(max(superlink.runs))
        keeper.look()
    order = place.order()
    assert order.state == "failed" and Code.RUN_CRASHED.value in order.reason
    assert "it died" in order.reason


def test_stopping_waits_for_the_serverapp_and_ends_without_one(
    home: CoordinatorHome, superlink: FakeSuperLink, keeper: Keeper
) -> None:
    place = ordered(home)
    keeper.look()
    with only_one(place.path / LOCK, "ServerApp"):
        stop(place)
        keeper.look()
        assert place.order().state == "stopping"
    keeper.look()
    assert place.order().state == "stopped"
    with pytest.raises(LoricaError) as caught:
        stop(place)
    assert caught.value.code is Code.RUN_STATE


def test_a_stopped_run_resumes_under_a_new_flower_run(
    home: CoordinatorHome, superlink: FakeSuperLink, keeper: Keeper
) -> None:
    place = ordered(home)
    keeper.look()
    with pytest.raises(LoricaError, match="by itself"):
        resume(place)
    stop(place)
    keeper.look()
    resume(place)
    keeper.look()
    assert place.order().flower_runs == [2] and place.order().run == "a"


def test_one_damaged_run_does_not_hold_the_others_up(
    home: CoordinatorHome, superlink: FakeSuperLink, keeper: Keeper
) -> None:
    (ordered(home, "bad").path / "order.json").write_text("{")
    good = ordered(home, "good")
    keeper.look()
    assert good.order().flower_runs == [1]


def test_a_superlink_that_is_down_is_told_to_the_caller(
    home: CoordinatorHome, keeper: Keeper, superlink: FakeSuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ordered(home)

    def down(bundle: bytes, run: str) -> int:
        raise LoricaError(Code.COORDINATOR_DOWN, "Nobody there.")

    monkeypatch.setattr(superlink, "start", down)
    with pytest.raises(LoricaError):
        keeper.look()
    assert place.order().flower_runs == [] and not place.order().over


def test_a_plan_without_labels_is_refused_before_anything_is_written(home: CoordinatorHome) -> None:
    with pytest.raises(LoricaError) as caught:
        submit(home, RunPlan(), run="a")
    assert caught.value.code is Code.DATA_TOO_FEW_LABELS
    assert not (home.runs / "a").exists()


def test_a_relative_folder_of_a_model_is_written_in_full(
    home: CoordinatorHome, small_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The services that start the run are at work in another folder than the command."""
    monkeypatch.chdir(small_backbone.parent)
    plan = RunPlan().replace(task={"labels": ["x", "y"]}, backbone={"source": small_backbone.name})
    place = submit(home, plan, run="a")
    assert place.folder.plan().backbone.source == str(small_backbone)


@pytest.mark.parametrize("run", ["../a", "a/b", ".a", "a b", "-a", "x" * 64])
def test_ids_that_could_be_paths_are_refused(home: CoordinatorHome, run: str) -> None:
    with pytest.raises(LoricaError) as caught:
        submit(home, RunPlan().replace(task={"labels": ["x", "y"]}), run=run)
    assert caught.value.code is Code.RUN_UNKNOWN


def test_runs_are_found_by_the_start_of_their_id(home: CoordinatorHome) -> None:
    for run in ("alpha", "alphabet", "beta"):
        ordered(home, run)
    assert RunPlace.find(home.runs, "b").run == "beta"
    assert RunPlace.find(home.runs, "alpha").run == "alpha"
    for start, said in (("alph", "2 runs begin"), ("x", "No run"), ("", "No run")):
        with pytest.raises(LoricaError, match=said):
            RunPlace.find(home.runs, start)
