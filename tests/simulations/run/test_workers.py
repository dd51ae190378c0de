"""Sites in worker processes: the same results as one after another, and what becomes of a death."""

from __future__ import annotations

import csv
import io
import json
import logging
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file

from lorica.client.training.trainer import LocalTrainer
from lorica.common.backbone.loading import load_backbone, loads
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.logs import fields_of
from lorica.common.plan import RunPlan
from lorica.common.wire.messages import Reply, Request
from lorica.simulations.run import workers
from lorica.simulations.run.grid import InProcessGrid
from lorica.simulations.run.nodes import VirtualNodes, packed, unpacked
from lorica.simulations.run.simulate import Simulation
from lorica.simulations.run.workers import SiteWorkers, shared_out, worker_count

pytestmark = pytest.mark.skipif(not workers.can_fork(), reason="no processes can be forked here")

FORK = multiprocessing.get_context("fork")
Say = Callable[[int], str]


def nodes_that_say(say: Say, count: int) -> VirtualNodes:
    app = ClientApp()

    @app.train()
    def handle(message: Message, context: Context) -> Message:
        text = say(int(context.node_config["partition-id"]))
        return Message(RecordDict({"lorica": ConfigRecord({"text": text})}), reply_to=message)

    return VirtualNodes(app, count)


def grid_of(working: SiteWorkers, count: int) -> InProcessGrid:
    return InProcessGrid(ClientApp(), count, working)


def ask(*nodes: int) -> list[Message]:
    return [Message(RecordDict(), node, "train", ttl=60.0, group_id="1") for node in nodes]


def text_of(message: Message) -> object:
    return message.content["lorica"]["text"]


def names(count: int) -> list[str]:
    return [f"site {partition}" for partition in range(count)]


# Division of the work


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=40),
    st.integers(1, 8),
)
def test_no_worker_has_more_to_do_than_a_fair_share_and_one_site(
    costs: list[int], count: int
) -> None:
    owners = shared_out(costs, count)
    assert len(owners) == len(costs)
    loads_of = [
        sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == worker)
        for worker in range(count)
    ]
    assert sum(loads_of) == sum(costs)
    assert max(loads_of) <= sum(costs) / count + max(costs)


def test_there_is_a_worker_for_every_core_but_not_more_than_sites(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers.torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(workers, "cores", lambda: 4)
    plan = RunPlan()
    assert worker_count(plan, 10) == 4
    assert worker_count(plan, 3) == 3
    assert worker_count(plan.replace(simulation={"workers": 6}), 10) == 6
    assert worker_count(plan.replace(simulation={"workers": 1}), 10) == 1
    assert worker_count(plan.replace(simulation={"engine": "ray"}), 10) == 1
    monkeypatch.setattr(workers, "cores", lambda: 1)
    assert worker_count(plan, 10) == 1


def test_a_round_that_asks_too_many_sites_runs_no_site_that_it_does_not_hear() -> None:
    plan = RunPlan().replace(rounds={"over_provision": 0.5}, simulation={"workers": 4})
    assert worker_count(plan, 10) == 1


def test_workers_are_refused_where_processes_cannot_be_forked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "can_fork", lambda: False)
    assert worker_count(RunPlan(), 10) == 1
    with pytest.raises(LoricaError, match=r"simulation\.workers is 2, but this system") as caught:
        worker_count(RunPlan().replace(simulation={"workers": 2}), 10)
    assert caught.value.code is Code.PLAN_BAD_VALUE


# The grid


def test_replies_come_in_the_order_of_messages_whoever_is_done_first() -> None:
    """The first site answers only after the second has."""
    second_ran = FORK.Event()

    def say(partition: int) -> str:
        if partition == 0:
            assert second_ran.wait(60)
        else:
            second_ran.set()
        return f"{partition} in {os.getpid()}"

    with SiteWorkers(nodes_that_say(say, 3), names(3), [0, 1, 1]) as working:
        replies = [
            str(text_of(reply)) for reply in grid_of(working, 3).send_and_receive(ask(1, 2, 3))
        ]
    assert [reply.split()[0] for reply in replies] == ["0", "1", "2"]
    processes = [int(reply.split()[-1]) for reply in replies]
    assert processes[1] == processes[2] != processes[0]
    assert os.getpid() not in processes


def test_a_reply_can_be_pulled_by_name() -> None:
    with SiteWorkers(nodes_that_say(str, 3), names(3), [0, 0, 1]) as working:
        grid = grid_of(working, 3)
        ids = list(grid.push_messages(ask(1, 2, 3)))
        (second,) = grid.pull_messages([ids[1]])
        assert text_of(second) == "1"
        assert second.metadata.reply_to_message_id == ids[1]
        assert [text_of(reply) for _ in ids for reply in grid.pull_messages(ids)] == ["0", "2"]
        assert list(grid.pull_messages(ids)) == []


def test_few_replies_wait_in_memory_however_many_sites_there_are() -> None:
    count = 60
    with SiteWorkers(nodes_that_say(str, count), names(count), [n % 2 for n in range(count)]) as w:
        grid, held = grid_of(w, count), 0
        ids = list(grid.push_messages(ask(*range(1, count + 1))))
        for partition in range(count):
            (reply,) = grid.pull_messages(ids)
            assert text_of(reply) == str(partition)
            held = max(held, len(w._done))
    assert held <= 2 * workers._WAITING + 2


def test_what_nobody_waits_for_any_more_keeps_no_worker_from_the_rest() -> None:
    """Who asks may have heard enough before all have answered, round after round."""
    said = nodes_that_say(str, 4)
    with SiteWorkers(said, names(4), [0, 1, 0, 1]) as working:

        def asked(name: str, partition: int) -> str:
            (message,) = ask(partition + 1)
            message.metadata.__dict__["_message_id"] = name
            working.ask(name, partition, packed(message))
            return name

        for turn in range(12):
            given_up = [asked(f"{turn} {place}", place) for place in range(4)]
            wanted = working.first([given_up[1]])
            assert text_of(unpacked(working.reply(wanted))) == "1"
            working.forget(given_up)
        rest = {asked(f"rest {place}", place): str(place) for place in range(4)}
        while rest:
            ended = working.first(list(rest))
            assert text_of(unpacked(working.reply(ended))) == rest.pop(ended)
        assert not working._done and not working._unwanted


def test_an_exception_in_a_worker_becomes_an_error_reply_as_without_workers() -> None:
    def say(partition: int) -> str:
        if partition == 1:
            raise ValueError("why")
        return "fine"

    nodes = nodes_that_say(say, 3)
    with SiteWorkers(nodes, names(3), [0, 1, 1]) as working:
        replies = list(grid_of(working, 3).send_and_receive(ask(1, 2, 3)))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.reason == "why"


def test_what_sites_log_is_logged_here_with_its_ids(caplog: pytest.LogCaptureFixture) -> None:
    def say(partition: int) -> str:
        log = logging.getLogger("lorica.site")
        try:
            raise ValueError("the reason")
        except ValueError as error:
            log.warning("site %d", partition, extra={"site": names(2)[partition]}, exc_info=error)
        return ""

    with SiteWorkers(nodes_that_say(say, 2), names(2), [0, 1]) as working:
        list(grid_of(working, 2).send_and_receive(ask(1, 2)))
    assert [fields_of(record)["site"] for record in caplog.records] == ["site 0", "site 1"]
    assert "ValueError: the reason" in caplog.text


def test_workers_read_the_model_that_was_loaded_before_they_began(small_backbone: Path) -> None:
    plan = RunPlan().replace(backbone={"source": str(small_backbone)})
    model = load_backbone(plan.backbone).model
    before = loads()

    def say(partition: int) -> str:
        again = load_backbone(plan.backbone).model
        return f"{again is model} {loads() - before}"

    with SiteWorkers(nodes_that_say(say, 2), names(2), [0, 1]) as working:
        replies = grid_of(working, 2).send_and_receive(ask(1, 2))
        assert [text_of(reply) for reply in replies] == ["True 0", "True 0"]


def test_a_worker_that_dies_is_told_by_a_sentence_with_its_site() -> None:
    def say(partition: int) -> str:
        if partition == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return "fine"

    with SiteWorkers(nodes_that_say(say, 2), names(2), [0, 1]) as working:
        with pytest.raises(LoricaError, match=r"site 'site 1' was ended by SIGKILL") as caught:
            list(grid_of(working, 2).send_and_receive(ask(1, 2)))
        assert caught.value.code is Code.WORKER_DIED
    assert not any(process.is_alive() for process in working._processes)


def test_a_worker_that_was_dead_before_it_was_asked_is_told_of_too() -> None:
    with SiteWorkers(nodes_that_say(str, 2), names(2), [0, 1]) as working:
        working._processes[1].kill()
        working._processes[1].join()
        with pytest.raises(LoricaError, match="SIGKILL"):
            list(grid_of(working, 2).send_and_receive(ask(1, 2)))


def test_no_worker_outlives_an_interrupted_run() -> None:
    started, never = FORK.Event(), FORK.Event()

    def say(partition: int) -> str:
        started.set()
        never.wait(60)
        return ""

    with (
        pytest.raises(KeyboardInterrupt),
        SiteWorkers(nodes_that_say(say, 2), names(2), [0, 1]) as working,
    ):
        grid_of(working, 2).push_messages(ask(1, 2))
        assert started.wait(60)
        raise KeyboardInterrupt
    assert not any(process.is_alive() for process in working._processes)


# Whole simulations

PLANS = {
    "gradient": ({"lora": "always", "lora_rounds": 1}, {"count": 3}, "fedsvd"),
    "local": ({"mode": "local"}, {"count": 2, "warm_start": 0}, "fedavg"),
    "personal": ({"mode": "local"}, {"count": 2, "warm_start": 0}, "fedsa"),
}


def make_plan(kind: str, small_backbone: Path, tmp_path: Path) -> RunPlan:
    training, rounds, method = PLANS[kind]
    generator = random.Random(4)
    words = {"money": ["card", "cash", "loan"], "health": ["fever", "pain", "heart"]}
    with (tmp_path / "data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for label, own in list(words.items()) * 60:
            writer.writerow([" ".join(generator.choices(own, k=generator.randint(2, 8))), label])
    return RunPlan().replace(
        backbone={"source": str(small_backbone)},
        adapter={"rank": 2, "layers": [-1]},
        data={"train": str(tmp_path / "data.csv")},
        privacy={"delta": 1e-3},
        training={"expected_batch_size": 8, "local_steps": 2, "lora_sample_rate": 0.5} | training,
        rounds={"evaluate_every": 2} | rounds,
        aggregation={"method": method},
        simulation={"sites": 3, "workers": 1},
    )


def results(folder: Path) -> tuple[list[dict[str, object]], dict[str, object]]:
    lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    rounds = [json.loads(line) for line in lines]
    for row in rounds:
        for part in (row, *row["sites"]):
            for key in [key for key in part if key.startswith("seconds")]:
                del part[key]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return rounds, summary["score_at_sites"]


def assert_same_bits(one: Path, other: Path) -> None:
    expected, found = (load_file(out / "checkpoint.safetensors") for out in (one, other))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", sorted(PLANS))
def test_workers_end_in_the_same_bits_as_one_site_after_another(
    kind: str, small_backbone: Path, tmp_path: Path
) -> None:
    """Reference: simulation.workers = 1, with one thread like them (tests/conftest.py)."""
    plan = make_plan(kind, small_backbone, tmp_path)
    console = Console(file=io.StringIO(), width=100)
    Simulation(plan, tmp_path / "one", console).run(report=False)
    several = plan.replace(simulation={"workers": 2})
    Simulation(several, tmp_path / "several", console).run(report=False)
    assert results(tmp_path / "one") == results(tmp_path / "several")
    assert_same_bits(tmp_path / "one", tmp_path / "several")
    kept = [len(list((tmp_path / out).glob("personal/*"))) for out in ("one", "several")]
    assert kept[0] == kept[1]


def test_a_run_whose_worker_died_goes_on_from_its_last_round(
    small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan("local", small_backbone, tmp_path).replace(simulation={"workers": 2})
    console = Console(file=io.StringIO(), width=100)
    Simulation(plan, tmp_path / "whole", console).run(report=False)
    train = LocalTrainer.train

    def dying(self: LocalTrainer, request: Request) -> Reply:
        if request.round == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(LocalTrainer, "train", dying)
        with pytest.raises(LoricaError) as caught:
            Simulation(plan, tmp_path / "broken", console).run(report=False)
    assert caught.value.code is Code.WORKER_DIED
    Simulation(plan, tmp_path / "broken", console).run(resume=True, report=False)
    assert_same_bits(tmp_path / "broken", tmp_path / "whole")
