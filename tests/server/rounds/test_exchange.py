"""The exchange: every node answered for once, as answers come, by the message they answer."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from lorica.common.errors import Code, LoricaError
from lorica.server.rounds.exchange import Answer, exchange

SUPERLINK = 1
"""Source of the error replies that Flower's SuperLink makes itself."""

NODES = [11, 12, 13]


class ScriptedGrid(Grid):
    """Answers pulls from a script: each pull takes the next list of nodes that have answered."""

    def __init__(self, *pulls: list[int | str]) -> None:
        """``pulls``: nodes (``-node`` for an error reply), or texts for replies to messages with
        that id, which nobody sent."""
        TaskIdentity.task_id, TaskIdentity.run_id = 1, 1
        TaskIdentity.node_id = SUPERLINK
        self._script = list(pulls)
        self._run = Run.create_empty(1)
        self.sent: dict[int, Message] = {}
        self.asked: list[list[str]] = []
        self.undeliverable: set[int] = set()

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        raise AssertionError("deprecated in Flower")

    def get_node_ids(self) -> Iterable[int]:
        return NODES

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"to-{node}"
            self.sent[node] = message
            ids.append("" if node in self.undeliverable else f"to-{node}")
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.asked.append(list(message_ids))
        return [self._reply(who) for who in self._script.pop(0)] if self._script else []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise AssertionError("polls every three seconds")

    def _reply(self, who: int | str) -> Message:
        if isinstance(who, str):
            reply = Message(content("stray"), reply_to=self.sent[NODES[0]])
            reply.metadata.__dict__["_reply_to_message_id"] = who
        elif who < 0:
            reply = Message(Error(5, "text of a site"), reply_to=self.sent[-who])
            reply.metadata.__dict__["_src_node_id"] = SUPERLINK
        else:
            reply = Message(content(f"from {who}"), reply_to=self.sent[who])
        return reply


def content(text: str) -> RecordDict:
    return RecordDict({"lorica": ConfigRecord({"text": text})})


def run(grid: Grid, timeout: float = 0.3, nodes: list[int] | None = None) -> list[Answer]:
    asked = NODES if nodes is None else nodes
    return list(
        exchange(grid, asked, lambda node: content("ask"), "train", timeout=timeout, group="4")
    )


def brief(answers: list[Answer]) -> list[tuple[int, str]]:
    return [(answer.node, answer.kind) for answer in answers]


def text_of(answer: Answer) -> object:
    assert answer.content is not None
    return answer.content["lorica"]["text"]


def test_every_node_is_answered_for_once_in_order_of_arrival() -> None:
    answers = run(ScriptedGrid([13], [], [11, 12]), timeout=5)
    assert brief(answers) == [(13, "reply"), (11, "reply"), (12, "reply")]
    assert [text_of(answer) for answer in answers] == ["from 13", "from 11", "from 12"]


def test_every_message_has_its_node_type_deadline_and_group() -> None:
    grid = ScriptedGrid([11, 12, 13])
    run(grid, timeout=7.5)
    assert list(grid.sent) == NODES
    for node, message in grid.sent.items():
        assert message.metadata.dst_node_id == node
        assert message.metadata.message_type == "train"
        assert message.metadata.ttl == 7.5
        assert message.metadata.group_id == "4"
        assert message.content["lorica"]["text"] == "ask"


def test_nodes_that_do_not_answer_in_time_are_late() -> None:
    grid = ScriptedGrid([12])
    begun = time.monotonic()
    answers = run(grid, timeout=0.3)
    elapsed = time.monotonic() - begun
    assert brief(answers) == [(12, "reply"), (11, "late"), (13, "late")]
    assert 0.3 <= elapsed < 3
    assert [answer.content for answer in answers[1:]] == [None, None]


def test_an_answer_after_the_deadline_is_never_pulled() -> None:
    grid = ScriptedGrid([11], *[[] for _ in range(100)], [12, 13])
    assert brief(run(grid, timeout=0.3)) == [(11, "reply"), (12, "late"), (13, "late")]


def test_an_error_reply_belongs_to_the_message_it_answers_whoever_sent_it() -> None:
    answers = run(ScriptedGrid([-12], [11, -13]), timeout=5)
    assert brief(answers) == [(12, "error"), (11, "reply"), (13, "error")]
    assert [answer.error for answer in answers] == [5, 0, 5]
    assert "text of a site" not in repr(answers)


def test_answers_that_nobody_asked_for_are_ignored() -> None:
    """A reply to an unknown message, and a second one to a message that was answered."""
    answers = run(ScriptedGrid(["nobody", 11], [11, ""], [12, 11], [13]), timeout=5)
    assert brief(answers) == [(11, "reply"), (12, "reply"), (13, "reply")]


def test_answers_are_handed_on_before_more_are_pulled() -> None:
    grid = ScriptedGrid([12], [13], [11])
    pulls = []
    for answer in exchange(grid, NODES, lambda node: content("ask"), "train", timeout=5, group="1"):
        pulls.append((answer.node, len(grid.asked)))
    assert pulls == [(12, 1), (13, 2), (11, 3)]
    assert grid.asked == [["to-11", "to-12", "to-13"], ["to-11", "to-13"], ["to-11"]]


def test_nothing_is_polled_once_all_have_answered() -> None:
    grid = ScriptedGrid([11, 12, 13])
    begun = time.monotonic()
    run(grid, timeout=60)
    assert len(grid.asked) == 1
    assert time.monotonic() - begun < 1


def test_no_nodes_give_no_answers() -> None:
    assert run(ScriptedGrid(), nodes=[]) == []


@pytest.mark.parametrize("gone", [{12}, {11, 13}, {11, 12, 13}])
def test_a_node_whose_message_flower_did_not_take_is_answered_for_at_once(gone: set[int]) -> None:
    """Flower gives an empty id for it: the node has left since it was listed."""
    here = [node for node in NODES if node not in gone]
    grid = ScriptedGrid(here)  # type: ignore[arg-type]
    grid.undeliverable = gone
    begun = time.monotonic()
    answers = run(grid, timeout=3)
    assert time.monotonic() - begun < 2, "there is nothing to wait for"
    assert sorted(answer.node for answer in answers) == NODES
    kinds = dict(brief(answers))
    assert all(kinds[node] == "reply" for node in here)
    assert all(kinds[node] in ("error", "late") for node in gone)


class BreakingGrid(ScriptedGrid):
    """A grid whose nodes come and go: it counts what each was sent, and knows since when each is
    online."""

    def __init__(self, *pulls: list[int | str]) -> None:
        super().__init__(*pulls)
        self.since = dict.fromkeys(NODES, "at first")
        self.pushes: list[int] = []

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=n, last_activated_at=at) for n, at in self.since.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        asked = list(messages)
        self.pushes += [message.metadata.dst_node_id for message in asked]
        return super().push_messages(asked)


def patiently(grid: Grid, **options: object) -> list[Answer]:
    settings: dict[str, object] = {"timeout": 20.0, "reconnect": 10.0} | options
    found = exchange(grid, NODES, lambda node: content("ask"), "train", group="4", **settings)  # type: ignore[arg-type]
    return list(found)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waits between looks."""
    monkeypatch.setattr("lorica.server.rounds.exchange._LOOK_SECONDS", 0.0)
    monkeypatch.setattr("lorica.server.rounds.exchange._AGAIN_SECONDS", 0.0)
    monkeypatch.setattr("lorica.server.rounds.exchange._SHORTEST", 0.01)
    monkeypatch.setattr("lorica.server.rounds.exchange._LONGEST", 0.01)


@pytest.mark.usefixtures("quick")
def test_a_node_whose_connection_broke_is_asked_again_and_answers_once() -> None:
    grid = BreakingGrid([11, -12], [], [12, 13])
    answers = patiently(grid)
    assert brief(answers) == [(11, "reply"), (12, "reply"), (13, "reply")]
    assert grid.pushes == [11, 12, 13, 12]


@pytest.mark.usefixtures("quick")
def test_a_node_that_began_anew_is_asked_again_for_it_forgot_the_message() -> None:
    grid = BreakingGrid([11, 13], [], [], [12])
    pull = grid.pull_messages

    def restarted(ids: Iterable[str]) -> Iterable[Message]:
        grid.since[12] = "later"
        return pull(ids)

    grid.pull_messages = restarted  # type: ignore[method-assign]
    assert brief(patiently(grid)) == [(11, "reply"), (13, "reply"), (12, "reply")]
    assert grid.pushes.count(12) == 2


@pytest.mark.usefixtures("quick")
def test_a_node_that_stays_away_is_given_up_after_the_time_for_reconnecting() -> None:
    grid = BreakingGrid([11, -12, 13])
    del grid.since[12]
    began = time.monotonic()
    answers = patiently(grid, reconnect=0.2)
    assert time.monotonic() - began < 5
    assert brief(answers) == [(11, "reply"), (13, "reply"), (12, "error")]
    assert answers[-1].error == 5


@pytest.mark.usefixtures("quick")
def test_a_reply_that_its_site_is_unavailable_is_asked_for_again() -> None:
    grid = BreakingGrid([11, 12, 13], [12])
    refused: list[object] = []

    def unavailable(reply: RecordDict) -> bool:
        first = reply["lorica"]["text"] == "from 12" and not refused
        refused.extend([reply] if first else [])
        return first

    answers = patiently(grid, unavailable=unavailable)
    assert brief(answers) == [(11, "reply"), (13, "reply"), (12, "reply")]


@pytest.mark.usefixtures("quick")
def test_what_stop_raises_ends_the_exchange() -> None:
    def stop() -> None:
        raise LoricaError(Code.RUN_STOPPED, "An operator stopped the run.")

    with pytest.raises(LoricaError, match="operator"):
        patiently(BreakingGrid(), stop=stop)
