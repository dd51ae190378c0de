"""News of the store for all open pages: one reader asks, everyone hears.

However many pages are open, the store is asked once per interval, every piece of news is written
out once, and what each client costs is a copy of finished bytes. With no page open nothing is
asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from typing import Any

import anyio.to_thread

from lorica.common.errors import LoricaError
from lorica.server.monitor.feed.news import News, Reader

_log = logging.getLogger("lorica.monitor")
_MOST_WAITING = 200  # a client that is so far behind is dropped; it comes back and catches up
_QUIET_SECONDS = 15.0  # after which pages hear that the feed lives, so that no proxy closes it
_PATIENT = 50  # open pages for which the pause between two looks is twice as long


class Live:
    """The feed of one monitor process."""

    def __init__(self, reader: Reader, seconds: float) -> None:
        """
        Args:
            reader: finds what is new; called in a thread.
            seconds: between two looks at the store with one page open; the more are open the
                longer, so that a running round never pays for a crowd.
        """
        self._reader, self._seconds = reader, seconds
        self._listeners: dict[str, set[asyncio.Queue[bytes | None]]] = defaultdict(set)
        self._told: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def listeners(self) -> int:
        """Open live pages."""
        return sum(len(found) for found in self._listeners.values())

    async def listen(self, topic: str) -> AsyncIterator[bytes]:
        """Server-sent events about ``topic``, from now on."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_MOST_WAITING)
        self._listeners[topic].add(queue)
        self._told.setdefault(topic, time.monotonic())
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())
        try:
            yield b"retry: 2000\n\n"
            while not self._closed and (news := await queue.get()) is not None:
                yield news
        finally:
            self._listeners[topic].discard(queue)
            if not self._listeners[topic]:
                del self._listeners[topic]

    async def close(self) -> None:
        """End all streams, so that the server can end."""
        self._closed = True
        for queues in self._listeners.values():
            for queue in queues:
                _drop(queue)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        """Look until nobody listens any more."""
        self._reader.forget()
        while self._listeners:
            topics = frozenset(self._listeners)
            try:
                found = await anyio.to_thread.run_sync(self._reader.look, topics)
            except LoricaError as error:
                _log.warning("The live feed waits: %s", error)
            else:
                self._publish(found)
            self._keep_alive()
            await asyncio.sleep(self._seconds * (1 + self.listeners / _PATIENT))

    def _publish(self, found: Iterable[News]) -> None:
        """All news of a topic at once: what a page costs is one write a look, however much
        there is to tell."""
        written: dict[str, bytearray] = defaultdict(bytearray)
        for news in found:
            if news.topic in self._listeners:
                written[news.topic] += as_event(news.kind, news.content)
        for topic, events in written.items():
            self._tell(topic, bytes(events))

    def _keep_alive(self) -> None:
        """A comment for topics that had no news for a while: one timer for all pages."""
        for topic in self._listeners:
            if time.monotonic() - self._told[topic] > _QUIET_SECONDS:
                self._tell(topic, b": quiet\n\n")
        self._told = {topic: when for topic, when in self._told.items() if topic in self._listeners}

    def _tell(self, topic: str, told: bytes) -> None:
        self._told[topic] = time.monotonic()
        for queue in self._listeners[topic]:
            try:
                queue.put_nowait(told)
            except asyncio.QueueFull:
                _drop(queue)


def as_event(kind: str, content: Any) -> bytes:
    """One server-sent event; JSON has no line breaks, so that no text in it can end the event."""
    return f"event: {kind}\ndata: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


def _drop(queue: asyncio.Queue[bytes | None]) -> None:
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(None)
