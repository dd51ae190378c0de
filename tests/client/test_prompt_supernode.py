"""How long a node waits before it looks for work again."""

from __future__ import annotations

import time
from types import ModuleType

import pytest
from flwr.supernode import start_client_internal

from lorica.client.prompt_supernode import Pauses, put_in_place

FLOWERS = 3.0


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("since", "expected"), [(0.0, 0.2), (1.0, 0.2), (10.0, 1.0), (25.0, 2.5), (3600.0, FLOWERS)]
)
def test_a_pause_is_a_tenth_of_the_time_since_the_last_message(
    since: float, expected: float
) -> None:
    clock = Clock()
    pauses = Pauses(clock)
    pauses.after(lambda: None)()
    clock.now += since
    assert pauses.pause(FLOWERS) == pytest.approx(expected)


def test_a_node_without_work_asks_as_often_as_flowers() -> None:
    assert Pauses(Clock()).pause(FLOWERS) == FLOWERS


def test_an_hour_of_silence_costs_few_looks() -> None:
    clock = Clock()
    pauses = Pauses(clock)
    pauses.after(lambda: None)()
    begun, looks = clock.now, 0
    while clock.now < begun + 3600:
        clock.now += pauses.pause(FLOWERS)
        looks += 1
    assert looks < 3600 / FLOWERS + 40


def test_work_that_fails_was_work_all_the_same() -> None:
    clock = Clock()
    pauses = Pauses(clock)

    def fails() -> None:
        raise OSError("the link is down")

    with pytest.raises(OSError, match="down"):
        pauses.after(fails)()
    assert pauses.pause(FLOWERS) == pytest.approx(0.2)


def test_flowers_own_loop_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_client_internal, "time", time)
    monkeypatch.setattr(
        start_client_internal, "_push_messages", start_client_internal._push_messages
    )
    pauses = Pauses()
    assert put_in_place(start_client_internal, pauses)
    assert start_client_internal.time is pauses
    begun = time.monotonic()
    start_client_internal.time.sleep(0.5)  # type: ignore[attr-defined]
    assert pauses.pause(0.5) == pytest.approx(0.1)
    assert start_client_internal.time.monotonic() >= begun  # type: ignore[attr-defined]


def test_an_unknown_loop_is_left_alone() -> None:
    loop = ModuleType("loop")
    loop.time = time  # type: ignore[attr-defined]
    assert not put_in_place(loop, Pauses())
    assert loop.time is time
