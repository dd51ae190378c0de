"""How long a node waits before it looks for work again, and replies that would stay behind."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory

from lorica.client.node.prompt_supernode import Prompt, put_in_place

FLOWERS = 3.0


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def worked(prompt: Prompt) -> None:
    """A message is handled."""
    prompt.pushing(lambda **_: None)(state=None)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Flower's own loop, put back after the test."""
    for name in ("time", "_push_messages", "_pull_and_store_message"):
        monkeypatch.setattr(start_client_internal, name, getattr(start_client_internal, name))
    return start_client_internal


@pytest.mark.parametrize(
    ("since", "expected"), [(0.0, 0.1), (1.0, 0.1), (10.0, 1.0), (25.0, 2.5), (3600.0, FLOWERS)]
)
def test_a_pause_is_a_tenth_of_the_time_since_the_last_message(
    since: float, expected: float
) -> None:
    clock = Clock()
    prompt = Prompt(clock)
    worked(prompt)
    clock.now += since
    assert prompt.pause(FLOWERS) == pytest.approx(expected)


def test_a_node_without_work_asks_as_often_as_flowers() -> None:
    assert Prompt(Clock()).pause(FLOWERS) == FLOWERS


def test_an_hour_of_silence_costs_few_looks() -> None:
    clock = Clock()
    prompt = Prompt(clock)
    worked(prompt)
    begun, looks = clock.now, 0
    while clock.now < begun + 3600:
        clock.now += prompt.pause(FLOWERS)
        looks += 1
    assert looks < 3600 / FLOWERS + 40


def test_work_that_fails_was_work_all_the_same() -> None:
    prompt = Prompt(Clock())

    def fails(**_: Any) -> None:
        raise OSError("the link is down")

    with pytest.raises(OSError, match="down"):
        prompt.pushing(fails)(state=None)
    assert prompt.pause(FLOWERS) == pytest.approx(0.1)


def test_flowers_own_loop_is_known(loop: ModuleType) -> None:
    prompt = Prompt()
    assert put_in_place(loop, prompt)
    begun = time.monotonic()
    loop.time.sleep(0.5)
    assert 0.04 < loop.time.monotonic() - begun < 0.5


def test_an_unknown_loop_is_left_alone() -> None:
    loop = ModuleType("loop")
    loop.time = time  # type: ignore[attr-defined]
    assert not put_in_place(loop, Prompt())
    assert loop.time is time


class Link:
    """A coordinator that has no message, and keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, message: Message, *_: Any) -> tuple[set[str], str]:
        """Take a reply."""
        self.sent.append(message.metadata.reply_to_message_id)
        return set(), ""

    def once(self, loop: ModuleType, state: Any, store: Any) -> int | None:
        """One turn of Flower's loop, without its pause."""
        names = ("get_run", "get_fab", "pull_object", "confirm_message_received")
        unused = {name: (lambda *_: None) for name in names}
        run: int | None = loop._pull_and_store_message(
            state=state,
            object_store=store,
            node_config={},
            receive=lambda: None,
            trusted_entities=None,
            **unused,
        )
        if run is not None:
            loop._push_messages(
                state=state, object_store=store, send=self.send, push_object=lambda *_: None
            )
        return run


def reply_to(name: str, state: Any, store: Any) -> None:
    """A reply of the ClientApp lies in the node's state."""
    question = Message(content=RecordDict(), dst_node_id=1, message_type="train")
    question.metadata.__dict__["_message_id"] = name
    start_client_internal._insert_message(
        Message(content=RecordDict(), reply_to=question), state, store
    )


@pytest.mark.parametrize("mended", [False, True])
def test_a_reply_that_stayed_behind_is_sent_though_no_message_comes(
    loop: ModuleType, mended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 7)
    objects = ObjectStoreFactory()
    store = objects.store()
    state = NodeStateFactory(objectstore_factory=objects).state()
    if mended:
        assert put_in_place(loop, Prompt())
    link = Link()
    assert link.once(loop, state, store) is None
    for name in ("one", "two"):
        reply_to(name, state, store)
    link.once(loop, state, store)
    assert link.sent == (["one", "two"] if mended else [])
    assert link.once(loop, state, store) is None and len(link.sent) in (0, 2)
