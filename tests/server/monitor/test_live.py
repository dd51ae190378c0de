"""The live feed: what is news, who hears it, and what it costs the store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from typing import Any

import pytest

from lorica.server.monitor.feed.live import Live, as_event
from lorica.server.monitor.feed.news import ALL, News, Reader
from lorica.server.monitor.feed.watch import AlertWatch
from lorica.server.monitor.request.templating import draw_run
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.server.store import RunStore
from tests.server.monitor.helpers import add_run


def reader_of(store: RunStore) -> Reader:
    """A reader that has taken stock."""
    reader = Reader(store, draw_run, AlertWatch(store))
    reader.look({ALL, "run-1"})
    return reader


def one_round(store: RunStore, number: int, status: Any = "ok") -> None:
    """A round more of run-1."""
    sites = [SiteRound("north", status, "why" if status != "ok" else "", 100, 0.5)]
    store.add_rounds("run-1", [RoundRecord(number, sites, accuracy=0.7, seconds=1.0)])


def kinds(news: list[News], topic: str) -> list[str]:
    """What kinds of news a topic got."""
    return [item.kind for item in news if item.topic == topic]


def test_nothing_new_is_no_news_and_a_sign_of_life_is_nothing_new(store: RunStore) -> None:
    reader = reader_of(store)
    assert reader.look({ALL, "run-1"}) == []
    store.beat("run-1")
    assert reader.look({ALL, "run-1"}) == []


def test_a_round_is_told_once_with_the_runs_state(store: RunStore) -> None:
    reader = reader_of(store)
    one_round(store, 4)
    news = reader.look({ALL, "run-1"})
    assert kinds(news, "run-1") == ["run", "round"] and kinds(news, ALL) == ["run"]
    told = next(item.content for item in news if item.kind == "round")
    assert told["round"] == 4 and told["cells"]["north"][:2] == ["o", 0.5]
    state = next(item.content for item in news if item.topic == "run-1")
    assert state["rounds_done"] == 4 and "4" in state["html"]["status"]
    assert reader.look({ALL, "run-1"}) == []


def test_every_round_between_two_looks_is_told(store: RunStore) -> None:
    reader = reader_of(store)
    for number in (4, 5):
        one_round(store, number)
    news = reader.look({"run-1"})
    assert [item.content["round"] for item in news if item.kind == "round"] == [4, 5]


def test_a_problem_is_told_as_a_line_and_in_the_grid(store: RunStore) -> None:
    reader = reader_of(store)
    one_round(store, 4, "refused")
    news = reader.look({"run-1"})
    assert [item.content["text"] for item in news if item.kind == "line"] == ["refused: why"]
    cells = next(item.content["cells"] for item in news if item.kind == "round")
    assert cells["north"][0] == "r"


def test_the_end_of_a_run_is_told_to_the_list_too(store: RunStore) -> None:
    reader = reader_of(store)
    store.set_status("run-1", "finished")
    told = [item for item in reader.look({ALL}) if item.topic == ALL]
    assert [item.content["status"] for item in told] == ["finished"]
    assert reader.look({ALL}) == []


def test_a_new_run_is_told_to_the_list(store: RunStore) -> None:
    reader = reader_of(store)
    add_run(store, "run-2")
    told = [item.content["run_id"] for item in reader.look({ALL}) if item.kind == "run"]
    assert told == ["run-2"]


def test_text_cannot_end_an_event_or_begin_another() -> None:
    hostile = "x\n\nevent: run\ndata: {}\n\n\r\r"
    written = as_event("line", {"text": hostile}).decode()
    assert written.count("\n\n") == 1 and "\r" not in written
    assert json.loads(written.splitlines()[1].removeprefix("data: "))["text"] == hostile


class Counted:
    """A reader that has one piece of news at each look, and counts the looks."""

    def __init__(self) -> None:
        self.looks = 0
        self.topics: set[frozenset[str]] = set()

    def forget(self) -> None:
        """Nothing to forget."""

    def look(self, topics: Collection[str]) -> list[News]:
        """One round."""
        self.looks += 1
        self.topics.add(frozenset(topics))
        return [News("run-1", "round", {"round": self.looks})]


async def heard_by(live: Live, topic: str, count: int) -> list[bytes]:
    """The first events of a listener, after its greeting."""
    stream = live.listen(topic)
    found = [await anext(stream) for _ in range(count + 1)]
    await stream.aclose()  # type: ignore[attr-defined]
    return found[1:]


def test_many_pages_cost_the_store_no_more_looks_than_one() -> None:
    async def play() -> tuple[list[list[bytes]], Counted]:
        reader = Counted()
        live = Live(reader, 0.01)  # type: ignore[arg-type]
        found = await asyncio.gather(*(heard_by(live, "run-1", 3) for _ in range(50)))
        await live.close()
        return found, reader

    found, reader = asyncio.run(play())
    assert all(heard == found[0] for heard in found)
    assert reader.looks <= 4


def test_a_page_without_news_hears_now_and_then_that_the_feed_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lorica.server.monitor.feed.live._QUIET_SECONDS", 0.03)

    async def play() -> list[bytes]:
        live = Live(Counted(), 0.01)  # type: ignore[arg-type]
        found = await heard_by(live, "run-2", 2)
        await live.close()
        return found

    assert asyncio.run(play()) == [b": quiet\n\n"] * 2


def test_with_no_page_open_nothing_is_asked_and_a_page_starts_it_again() -> None:
    async def play() -> None:
        reader = Counted()
        live = Live(reader, 0.01)  # type: ignore[arg-type]
        assert reader.looks == 0
        await heard_by(live, "run-1", 2)
        assert live.listeners == 0
        await asyncio.sleep(0.05)
        looks = reader.looks
        await asyncio.sleep(0.1)
        assert reader.looks == looks
        await heard_by(live, "run-1", 1)
        assert reader.looks > looks
        await live.close()

    asyncio.run(play())


def test_a_page_hears_of_its_own_run_alone() -> None:
    async def play() -> None:
        live = Live(Counted(), 0.01)  # type: ignore[arg-type]
        other = asyncio.create_task(heard_by(live, "run-2", 1))
        await heard_by(live, "run-1", 3)
        assert not other.done()
        await live.close()  # ends all streams
        assert await asyncio.wait({other}, timeout=5) != (set(), {other})

    asyncio.run(play())


def test_a_page_that_does_not_listen_is_dropped_and_holds_nobody_up() -> None:
    async def play() -> None:
        live = Live(Counted(), 0.0)  # type: ignore[arg-type]
        slow = live.listen("run-1")
        await anext(slow)
        await heard_by(live, "run-1", 400)
        with_end = [item async for item in slow]
        assert len(with_end) < 400  # what had waited is given up; it comes back and catches up
        await live.close()

    asyncio.run(play())
