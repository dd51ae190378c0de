"""Requests that come together are answered together: one batch of the model for many callers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

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
    """Answers requests in batches, on threads of its own.

    A request waits for others no longer than the batches in hand take, and ``gather`` seconds: what
    has come meanwhile makes the next batch. A text in a batch of sixteen costs about a third of
    one alone. Two batches on a core each cost less than one on both, whose parts wait for each
    other. Requests with a table beside their texts share batches, too, by their columns.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        most_texts: int,
        most_waiting: int,
        gather: float = 0.0,
        hands: int = 1,
    ) -> None:
        """
        Args:
            answer: called on the threads, on all of them at once.
            most_texts: of one batch.
            most_waiting: texts that may wait; a request beyond that is refused at once.
            gather: seconds that the oldest text waits for a full batch at most.
            hands: batches that are answered at a time, each by its share of this process's cores.
        """
        self._answer = answer
        self._most_texts, self._most_waiting, self._gather = most_texts, most_waiting, gather
        self._queue: deque[_Waiting] = deque()
        self._some = asyncio.Event()
        cores = max(1, torch.get_num_threads() // hands)
        self._threads = ThreadPoolExecutor(
            hands, "lorica-serve", initializer=torch.set_num_threads, initargs=(cores,)
        )
        self._free = asyncio.Semaphore(hands)
        self._in_hand: set[asyncio.Task[None]] = set()
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
        for task in (self._task, *self._in_hand):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        _refuse(self._queue)
        self._queue.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

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
        while True:
            await self._some.wait()
            self._some.clear()
            while self._queue:
                await self._free.acquire()
                await self._gathered()
                task = asyncio.create_task(self._answered(self._next()))
                self._in_hand.add(task)
                task.add_done_callback(self._in_hand.discard)

    async def _answered(self, batch: list[_Waiting]) -> None:
        """Answer one batch, and let the next one begin."""
        texts = [text for request in batch for text in request.texts]
        self.sizes.append(len(texts))
        try:
            found = await self._asked(texts, _joined(batch))
        except asyncio.CancelledError:
            _refuse(batch)
            raise
        except Exception as error:  # noqa: BLE001 - each caller hears of its own
            await self._one_by_one(batch, error)
        else:
            _hand_out(batch, found)
        finally:
            self._free.release()

    async def _asked(self, texts: list[str], table: dict[str, list[str]]) -> list[Prediction]:
        loop = asyncio.get_running_loop()
        return list(await loop.run_in_executor(self._threads, self._answer, texts, table))

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
        for request in batch:
            try:
                found = await self._asked(request.texts, request.table)
            except Exception as own:  # noqa: BLE001
                if not request.done.done():
                    request.done.set_exception(own)
            else:
                _hand_out([request], found)


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


def _refuse(requests: Iterable[_Waiting]) -> None:
    for request in requests:
        if not request.done.done():
            request.done.set_exception(_busy("The server stops."))


def _busy(detail: str) -> LoricaError:
    return LoricaError(Code.SERVER_BUSY, detail)
