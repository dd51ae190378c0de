"""The trainer as a process behind its socket: what it keeps warm, what it answers, how it ends."""

from __future__ import annotations

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lorica.client.config.site import load_site
from lorica.client.training.opening import open_ledger
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.wire.messages import CAPABILITIES, EVALUATE, TRAIN
from tests.client.service.helpers import (
    NAME,
    ask,
    make_site,
    request_for,
    small_plan,
    status,
    trainer_process,
)


@pytest.fixture
def site(tmp_path: Path, small_backbone: Path) -> Path:
    return make_site(tmp_path / "site", small_backbone)


@pytest.fixture
def plan(small_backbone: Path) -> RunPlan:
    return small_plan(small_backbone)


def charges(config: Path) -> int:
    ledger = open_ledger(load_site(config), config.parent)
    try:
        return len(ledger.history().charges)
    finally:
        ledger.close()


@pytest.mark.process
def test_a_run_of_50_rounds_loads_the_backbone_once(site: Path, small_backbone: Path) -> None:
    plan = small_plan(small_backbone, rounds={"count": 50, "evaluate_every": 50})
    socket = site.parent / "trainer.sock"
    with trainer_process(site):
        assert ask(socket, CAPABILITIES, request_for(plan, CAPABILITIES, 0)).status == "ok"
        for round in range(1, 51):
            reply = ask(socket, TRAIN, request_for(plan, TRAIN, round))
            assert reply.status == "ok", reply.reason
            assert NAME.encode() not in reply.blob
        assert ask(socket, EVALUATE, request_for(plan, EVALUATE, 50)).status == "ok"
        found = status(socket)
    assert found.backbone_loads == 1
    assert dict(found.answered) == {"capabilities": 1, "train": 50, "evaluate": 1}
    assert (found.refused, found.in_hand, found.site) == (0, 0, "north")
    assert 0 < found.epsilon_spent <= plan.privacy.epsilon * 1.001


@pytest.mark.process
def test_the_same_request_asked_by_many_at_once_costs_once(site: Path, plan: RunPlan) -> None:
    socket, request = site.parent / "trainer.sock", request_for(plan, TRAIN, 1)
    with trainer_process(site), ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: ask(socket, TRAIN, request), range(6)))
    told = {reply.code for reply in replies}  # one that comes after the answer is a replay
    assert "" in told and told <= {"", Code.REQUEST_REPLAYED.value}
    assert len({reply.blob for reply in replies if reply.status == "ok"}) == 1
    assert charges(site) == 1


@pytest.mark.process
def test_told_to_end_the_trainer_ends_cleanly_and_removes_its_socket(site: Path) -> None:
    with trainer_process(site) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not (site.parent / "trainer.sock").exists()


@pytest.mark.process
def test_a_killed_trainers_socket_is_taken_over_a_living_ones_is_not(
    site: Path, plan: RunPlan
) -> None:
    socket = site.parent / "trainer.sock"
    with trainer_process(site) as first:
        first.kill()
        first.wait()
        assert socket.is_socket()
        with trainer_process(site), trainer_process(site, ready=False) as third:
            _, said = third.communicate(timeout=60)
            assert third.returncode == 17
            assert Code.TRAINER_RUNNING.value in said
            assert ask(socket, CAPABILITIES, request_for(plan, CAPABILITIES, 0)).status == "ok"


@pytest.mark.process
def test_a_trainer_that_comes_back_answers_a_request_that_waits(site: Path, plan: RunPlan) -> None:
    socket, request = site.parent / "trainer.sock", request_for(plan, TRAIN, 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, socket, TRAIN, request, wait=120.0)
        with trainer_process(site):
            assert waiting.result(120).status == "ok"


def test_without_a_trainer_the_refusal_says_so(site: Path, plan: RunPlan) -> None:
    with pytest.raises(LoricaError) as caught:
        ask(site.parent / "trainer.sock", TRAIN, request_for(plan, TRAIN, 1), wait=0.2)
    assert caught.value.code is Code.TRAINER_DOWN


@pytest.mark.process
def test_the_trainers_process_has_no_network_interface_up(site: Path) -> None:
    if subprocess.run(["unshare", "-Un", "true"], capture_output=True).returncode:
        pytest.skip("this system allows no user namespaces")
    with trainer_process(site, "--isolate", "require") as process:
        flags = subprocess.run(
            ["nsenter", "-t", str(process.pid), "-n", "ip", "-o", "link"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert "isolated" in status(site.parent / "trainer.sock").isolation
    assert flags
    assert not [line for line in flags if "UP" in line.partition("<")[2].partition(">")[0]]
