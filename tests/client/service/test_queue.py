"""One request at a time: what waits, what is sent away, what is answered meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lorica.client.node.forwarder import SocketForwarder
from lorica.client.service.queue import MOST_IN_HAND, Spent, TrainerService
from lorica.client.service.serving import Serving
from lorica.client.service.socket_file import SocketFile
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.wire.messages import Reply, Request, pack_request
from tests.client.service.helpers import from_bytes, status, to_bytes, wait_ready

PLAN = RunPlan().replace(task={"labels": ["a", "b"]})


@dataclass
class Blocking:
    """A trainer that works until it is let go."""

    site: str = "north"
    begun: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def capabilities(self, request: Request) -> Reply:
        return self.train(request)

    def train(self, request: Request) -> Reply:
        self.asked.append(request.run)
        self.threads.add(threading.get_ident())
        self.begun.set()
        assert self.let_go.wait(60)
        return Reply(request.plan.fingerprint, request.round, site=self.site)

    def evaluate(self, request: Request) -> Reply:
        return self.train(request)


@dataclass
class Served:
    """A service in this process."""

    socket: Path
    trainer: Blocking
    loop: asyncio.AbstractEventLoop
    serving: Serving

    def ask(self, run: str) -> str:
        """The status of the answer to a request of this run, as the thin ClientApp gets it."""
        content = to_bytes(pack_request(Request(PLAN, run, 1)))
        reply = SocketForwarder(self.socket, wait=1.0).forward("train", content)
        return str(from_bytes(reply)["lorica"]["status"])

    def end(self, grace: float) -> bool:
        return asyncio.run_coroutine_threadsafe(self.serving.end(grace), self.loop).result(60)


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    trainer, ready = Blocking(), threading.Event()
    file = SocketFile(folder / "t.sock")
    made: list[Served] = []
    over: list[asyncio.Event] = []

    async def serve() -> None:
        service = TrainerService(trainer, spent=lambda: Spent(1.5, 8.0, 1e-5), loads=lambda: 3)
        serving = Serving(service, file, users=[], message_bytes=1 << 20)
        await serving.start()
        over.append(asyncio.Event())
        made.append(Served(file.path, trainer, asyncio.get_running_loop(), serving))
        ready.set()
        await over[0].wait()
        await serving.end(0.0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(60)
    try:
        wait_ready(file.path)
        yield made[0]
    finally:
        trainer.let_go.set()
        made[0].loop.call_soon_threadsafe(over[0].set)
        thread.join(60)
        file.close()


def test_status_is_answered_while_a_request_is_worked_on(tmp_path: Path) -> None:
    with served(tmp_path) as site, ThreadPoolExecutor(2) as pool:
        working = pool.submit(site.ask, "first\u202e")
        assert site.trainer.begun.wait(30)
        found = status(site.socket)
        assert (found.method, found.run, found.round) == ("train", "first\ufffd", 1)
        assert (found.in_hand, found.backbone_loads, found.epsilon_spent) == (1, 3, 1.5)
        site.trainer.let_go.set()
        assert working.result(30) == "ok"
        assert status(site.socket).method == ""


def test_the_same_request_is_worked_on_once_and_others_in_turn_by_one_thread(
    tmp_path: Path,
) -> None:
    with served(tmp_path) as site, ThreadPoolExecutor(4) as pool:
        first = pool.submit(site.ask, "a")
        assert site.trainer.begun.wait(30)
        rest = [pool.submit(site.ask, run) for run in ("a", "b", "a")]
        site.trainer.let_go.set()
        assert {answer.result(30) for answer in [first, *rest]} == {"ok"}
        assert site.trainer.asked.count("b") == 1
        assert len(site.trainer.threads) == 1


def test_more_requests_than_are_kept_are_sent_away_as_busy(tmp_path: Path) -> None:
    with served(tmp_path) as site, ThreadPoolExecutor(MOST_IN_HAND) as pool:
        kept = [pool.submit(site.ask, f"run {n}") for n in range(MOST_IN_HAND)]
        while status(site.socket).in_hand < MOST_IN_HAND:
            assert not any(answer.done() for answer in kept)
        with pytest.raises(LoricaError) as caught:
            site.ask("one more")
        assert caught.value.code is Code.TRAINER_BUSY
        site.trainer.let_go.set()
        assert {answer.result(60) for answer in kept} == {"ok"}


def test_ending_finishes_what_is_worked_on_and_begins_nothing_more(tmp_path: Path) -> None:
    with served(tmp_path) as site, ThreadPoolExecutor(2) as pool:
        working = pool.submit(site.ask, "worked on")
        assert site.trainer.begun.wait(30)
        waiting = pool.submit(site.ask, "waits")
        while status(site.socket).in_hand < 2:
            pass
        threading.Timer(0.2, site.trainer.let_go.set).start()
        assert site.end(30.0)
        assert working.result(30) == "ok"
        with pytest.raises(LoricaError) as caught:
            waiting.result(60)
        assert caught.value.code is Code.TRAINER_DOWN
        assert site.trainer.asked == ["worked on"]


def test_what_takes_too_long_is_abandoned_when_serving_ends(tmp_path: Path) -> None:
    with served(tmp_path) as site, ThreadPoolExecutor(1) as pool:
        working = pool.submit(site.ask, "endless")
        assert site.trainer.begun.wait(30)
        assert not site.end(0.1)
        with pytest.raises(LoricaError):
            working.result(60)
        site.trainer.let_go.set()
