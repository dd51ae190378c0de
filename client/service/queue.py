"""The trainer behind gRPC: one request at a time, each answered once, however often it is asked.

Requests and replies are opaque bytes to whoever passes them on. One thread does all the work, in
the order in which requests came, so that model, caches and ledger are never used by two at once.
The same request that comes again while the first is in hand (a node that was restarted asks
anew) waits for the same answer; afterwards the ledger has its stored reply.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc

from lorica.client.answering.endpoint import answer, is_refusal
from lorica.client.answering.protocol import Trainer
from lorica.client.answering.trainer_pb2 import Content, Event, Progress, StatusReply, StatusRequest
from lorica.client.answering.trainer_pb2_grpc import TrainerServicer
from lorica.client.service.meter import Meter
from lorica.common.display.text import printable
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.logs import log_context
from lorica.common.version import __version__
from lorica.common.wire.messages import (
    Reply,
    Request,
    pack_reply,
    record_from_bytes,
    record_to_bytes,
    refusal,
)

METHODS = ("capabilities", "train", "evaluate")
MOST_IN_HAND = 8
"""Requests that wait or are worked on; more are sent away."""
PROGRESS_SECONDS = 2.0

_CHARGED = ("train", "evaluate")
_MOST_SHOWN = 100  # characters of a run id

_log = logging.getLogger("lorica.site")


@dataclass(frozen=True)
class Spent:
    """The ledger's total, for the site's own operators."""

    epsilon: float
    lifetime: float
    delta: float


@dataclass
class _Job:
    """A request in hand."""

    method: str
    content: bytes
    future: asyncio.Future[bytes] = field(init=False)
    waiting: int = 0
    """How many calls wait for it."""
    begun: float = 0.0
    """When work began, monotonic seconds; 0: not yet."""
    run: str = ""
    round: int = 0


class TrainerService(TrainerServicer):
    """Answers the calls of ``client/answering/trainer.proto`` with one trainer."""

    def __init__(
        self,
        trainer: Trainer,
        *,
        spent: Callable[[], Spent],
        loads: Callable[[], int],
        isolation: str = "",
        meter: Meter | None = None,
    ) -> None:
        """
        Args:
            trainer: does the work, in one thread.
            spent: the ledger's total; called from other threads.
            loads: how often a pretrained model was loaded.
            isolation: a sentence about the process's network.
            meter: notes what answers took, by run; None notes nothing.
        """
        self._meter = meter
        self._trainer = trainer
        self._spent, self._loads, self._isolation = spent, loads, isolation
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trainer")
        self._jobs: dict[tuple[str, bytes], _Job] = {}
        self._working: _Job | None = None
        self._answered: Counter[str] = Counter()
        self._refused = 0
        self._since = time.monotonic()
        self._ending = False

    async def Capabilities(  # noqa: N802 - gRPC's name
        self, request: Content, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Event]:
        """Whether the site takes part."""
        async for event in self._events("capabilities", request.record, context):
            yield event

    async def Train(  # noqa: N802
        self, request: Content, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Event]:
        """One round's update."""
        async for event in self._events("train", request.record, context):
            yield event

    async def Evaluate(  # noqa: N802
        self, request: Content, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Event]:
        """Noised counts."""
        async for event in self._events("evaluate", request.record, context):
            yield event

    async def Status(  # noqa: N802
        self, request: StatusRequest, context: grpc.aio.ServicerContext
    ) -> StatusReply:
        """What the trainer does and did; answered while it works, too."""
        spent = await asyncio.to_thread(self._spent)
        job, now = self._working, time.monotonic()
        return StatusReply(
            site=self._trainer.site,
            version=__version__,
            pid=os.getpid(),
            uptime_seconds=now - self._since,
            answered=dict(self._answered),
            refused=self._refused,
            in_hand=len(self._jobs),
            method=job.method if job else "",
            run=job.run if job else "",
            round=job.round if job else 0,
            working_seconds=now - job.begun if job else 0.0,
            backbone_loads=self._loads(),
            epsilon_spent=spent.epsilon,
            epsilon_lifetime=spent.lifetime,
            delta=spent.delta,
            isolation=self._isolation,
        )

    async def end(self, seconds: float) -> bool:
        """Begin nothing more and wait for what is worked on, at most ``seconds``.

        Returns:
            Whether nothing is left running. If something is, its charge stays in the ledger and
            pays for another attempt.
        """
        self._ending = True
        for job in list(self._jobs.values()):
            if not job.begun:
                job.future.cancel()
        running = [job.future for job in self._jobs.values() if job.begun]
        if running:
            await asyncio.wait(running, timeout=seconds)
        return all(future.done() for future in running)

    async def _events(
        self, method: str, content: bytes, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Event]:
        """Progress until the answer is there, then the answer."""
        arrived = time.monotonic()
        job = await self._job(method, content, context)
        job.waiting += 1
        try:
            while True:
                done, _ = await asyncio.wait({job.future}, timeout=PROGRESS_SECONDS)
                if done:
                    break
                phase = Progress.WORKING if job.begun else Progress.WAITING
                seconds = time.monotonic() - arrived
                yield Event(progress=Progress(phase=phase, seconds=seconds))
        finally:
            job.waiting -= 1
            if not job.waiting and not job.begun:
                job.future.cancel()  # nobody waits for it any more, and it has cost nothing
        if job.future.cancelled():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the trainer is ending")
        yield Event(reply=Content(record=job.future.result()))

    async def _job(self, method: str, content: bytes, context: grpc.aio.ServicerContext) -> _Job:
        """The job of a request: the one in hand if it is the same, else a new one."""
        if self._ending:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the trainer is ending")
        known = self._jobs.get((method, content))
        if known is not None and not known.future.cancelled():
            return known
        if len(self._jobs) >= MOST_IN_HAND:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests wait")
        job = _Job(method, content)
        self._jobs[method, content] = job
        job.future = asyncio.get_running_loop().run_in_executor(self._thread, self._work, job)
        job.future.add_done_callback(lambda _: self._forget(job))
        return job

    def _forget(self, job: _Job) -> None:
        if self._jobs.get((job.method, job.content)) is job:
            del self._jobs[job.method, job.content]

    def _work(self, job: _Job) -> bytes:
        """Answer one request, in the trainer's thread."""
        job.begun = time.monotonic()
        self._working = job
        try:
            packed, refused = self._measured(job)
        finally:
            self._working = None
        self._answered[job.method] += 1
        self._refused += refused
        with log_context(site=self._trainer.site, run=job.run, round=job.round):
            _log.info("%s %s in %.1f s", job.method, job.run, time.monotonic() - job.begun)
        return packed

    def _measured(self, job: _Job) -> tuple[bytes, bool]:
        """The answer, and whether it refuses. What it took is noted if it is one of a run that the
        site takes part in: who is refused may name any."""
        watched = _Watched(self._trainer, job)
        if self._meter is None:
            return answer_bytes(job.method, job.content, watched)
        with self._meter.answer() as noting:
            packed, refused = answer_bytes(job.method, job.content, watched)
            if not refused and job.method in _CHARGED:
                noting.run = job.run
        return packed, refused


class _Watched:
    """A trainer that notes, for Status, what it is asked."""

    def __init__(self, trainer: Trainer, job: _Job) -> None:
        self._trainer, self._job = trainer, job
        self.site = trainer.site

    def capabilities(self, request: Request) -> Reply:
        return self._noting(request).capabilities(request)

    def train(self, request: Request) -> Reply:
        return self._noting(request).train(request)

    def evaluate(self, request: Request) -> Reply:
        return self._noting(request).evaluate(request)

    def _noting(self, request: Request) -> Trainer:
        self._job.run, self._job.round = printable(request.run[:_MOST_SHOWN]), request.round
        return self._trainer


def answer_bytes(method: str, content: bytes, trainer: Trainer) -> tuple[bytes, bool]:
    """The serialised reply to a serialised request, and whether it is a refusal; never raises."""
    try:
        record = record_from_bytes(content)
    except Exception as error:  # noqa: BLE001 - of many kinds; hostile bytes
        _log.warning("refused %s: it is no record", method, exc_info=error)
        malformed = LoricaError(Code.MESSAGE_MALFORMED, "A request is no Flower record.")
        reply = pack_reply(refusal(malformed, site=trainer.site))
    else:
        reply = answer(method, record, lambda: trainer)
    return record_to_bytes(reply), is_refusal(reply)
