"""Requests that come together are answered together: one batch of the model for many callers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lorica.common.errors import Code, LoricaError
from lorica.common.tasks.base import Prediction

Answer = Callable[[Sequence[str], Mapping[str, Sequence[str]]], Sequence[Prediction]]
"""Texts and columns of a table beside them -> one prediction for each, in their order."""


@dataclass
class _Waiting:
    texts: list[str]
    table: dict[str, list[str]]
    done: asyncio.Future[list[Prediction]]
    since: float
    """When it came, by the monotonic clock, seconds."""


class Batches:
    """Answers requests in batches, on one thread that owns the model.

    A request waits for others no longer than the batch in hand takes, and ``gather`` seconds: what
    has come meanwhile makes the next batch. A text in a batch of sixteen costs about a third of
    one alone. Requests with a table beside their texts share batches, too, by their columns.
    """

    def __init__(
        self, answer: Answer, *, most_texts: int, most_waiting: int, gather: float = 0.0
    ) -> None:
        """
        Args:
            answer: called on the thread.
            most_texts: of one batch.
            most_waiting: texts that may wait; a request beyond that is refused at once.
            gather: seconds that the oldest text waits for a full batch at most.
        """
        self._answer = answer
        self._most_texts, self._most_waiting, self._gather = most_texts, most_waiting, gather
        self._queue: deque[_Waiting] = deque()
        self._some = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lorica-serve")
        self._task: asyncio.Task[None] | None = None
        self.sizes: list[int] = []
        """Texts of the last batches, for metrics; whoever reads it empties it."""

    @property
    def waiting(self) -> int:
        """Texts that wait for a batch."""
        return sum(len(request.texts) for request in self._queue)

    def start(self) -> None:
        """Begin to answer; within the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop; requests that wait are refused."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for request in self._queue:
            if not request.done.done():
                request.done.set_exception(_busy("The server stops."))
        self._queue.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def ask(self, texts: list[str], table: dict[str, list[str]]) -> list[Prediction]:
        """Predictions for one request.

        Raises:
            LoricaError: LOR-840 too many texts wait; what the model's caller raises.
        """
        if self.waiting + len(texts) > self._most_waiting:
            raise _busy(f"{self.waiting} texts wait, and at most {self._most_waiting} may.")
        done: asyncio.Future[list[Prediction]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(texts, table, done, time.monotonic()))
        self._some.set()
        return await done

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._some.wait()
            self._some.clear()
            while self._queue:
                await self._gathered()
                batch = self._next()
                texts = [text for request in batch for text in request.texts]
                table = _joined(batch)
                self.sizes.append(len(texts))
                try:
                    found = await loop.run_in_executor(self._thread, self._answer, texts, table)
                except Exception as error:  # noqa: BLE001 - each caller hears of its own
                    await self._one_by_one(batch, error)
                else:
                    _hand_out(batch, list(found))

    async def _gathered(self) -> None:
        """Wait until there is a full batch, or the oldest text has waited long enough."""
        while self.waiting < self._most_texts:
            left = self._queue[0].since + self._gather - time.monotonic()
            if left <= 0:
                return
            self._some.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._some.wait(), left)

    def _next(self) -> list[_Waiting]:
        """Requests with the same columns, from the oldest on, as many as fit."""
        batch = [self._queue.popleft()]
        count, columns = len(batch[0].texts), batch[0].table.keys()
        while (
            self._queue
            and self._queue[0].table.keys() == columns
            and count + len(self._queue[0].texts) <= self._most_texts
        ):
            batch.append(self._queue.popleft())
            count += len(batch[-1].texts)
        return batch

    async def _one_by_one(self, batch: list[_Waiting], error: Exception) -> None:
        """After a batch failed: one caller's bad text is no other's error."""
        if len(batch) == 1:
            if not batch[0].done.done():
                batch[0].done.set_exception(error)
            return
        loop = asyncio.get_running_loop()
        for request in batch:
            try:
                found = await loop.run_in_executor(
                    self._thread, self._answer, request.texts, request.table
                )
            except Exception as own:  # noqa: BLE001
                if not request.done.done():
                    request.done.set_exception(own)
            else:
                _hand_out([request], list(found))


def _joined(batch: list[_Waiting]) -> dict[str, list[str]]:
    return {
        name: [cell for request in batch for cell in request.table[name]] for name in batch[0].table
    }


def _hand_out(batch: list[_Waiting], found: list[Prediction]) -> None:
    start = 0
    for request in batch:
        end = start + len(request.texts)
        if not request.done.done():  # whoever went away waits for nothing
            request.done.set_result(found[start:end])
        start = end


def _busy(detail: str) -> LoricaError:
    return LoricaError(Code.SERVER_BUSY, detail)
