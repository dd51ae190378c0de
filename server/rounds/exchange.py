"""Send messages to sites and take their answers as they come, each with its own deadline.

A connection that breaks is not an answer: the node is asked the same again once it is back. That
is safe, for a site answers a repeated request with its stored reply.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from lorica.common.wire.messages import Reply

_SHORTEST, _LONGEST, _SHARE = 0.1, 0.5, 0.1
"""Seconds between polls: a tenth of the time since the messages were sent, within bounds."""
_LOOK_SECONDS = 2.0  # between looks at which nodes are online, and since when
_AGAIN_SECONDS = 1.0  # before a node is asked again
_BROKEN = frozenset({0, 1, 2, 3, 4, 5, 8})
"""Flower's error codes that say that a message or its reply was lost on its way, or that a node's
ClientApp died: Lorica's own answers every request and raises nothing."""


@dataclass(frozen=True)
class Answer:
    """What came back from one node, or that nothing did."""

    node: int
    kind: Literal["reply", "error", "late"]
    seconds: float
    """From sending to the answer."""
    content: RecordDict | None = None
    """Of a reply."""
    error: int = 0
    """Flower's error code."""
    reply: Reply | None = None
    """Of a reply that did not travel (:mod:`lorica.server.rounds.direct`)."""


@dataclass
class _Node:
    """A node that has not been answered for."""

    active_since: str = ""
    """When it came online last, as the grid says; a later time means that it began anew."""
    again: float | None = None
    """When to ask it again, seconds since the start."""
    broken: float | None = None
    """Since when its connection is broken."""
    error: int = 0


def exchange(
    grid: Grid,
    nodes: list[int],
    content: Callable[[int], RecordDict],
    kind: str,
    *,
    timeout: float,
    group: str,
    reconnect: float = 0.0,
    unavailable: Callable[[RecordDict], bool] = lambda reply: False,
    stop: Callable[[], None] = lambda: None,
) -> Iterator[Answer]:
    """One message to every node; answers as they arrive.

    Every node is answered for exactly once. Answers that come after the deadline, or after the
    caller took as many as it wanted, are never pulled: their message ids are forgotten.

    Args:
        grid: Flower's grid.
        nodes: ids of the nodes.
        content: makes the packed request to a node; called whenever one is sent, for a signed
            request is good for one answer.
        kind: Flower message type, such as "train" or "query.capabilities".
        timeout: seconds to wait for each node, and the messages' time to live.
        group: Flower's group id, such as the round.
        reconnect: how long to wait for a node whose connection broke, seconds; 0: not at all.
        unavailable: whether a reply says that the site cannot answer for the moment; such a node
            counts as one whose connection broke.
        stop: called between polls; what it raises ends the exchange.
    """
    return _Exchange(grid, content, kind, timeout, group, reconnect, unavailable, stop).run(nodes)


class _Exchange:
    def __init__(
        self,
        grid: Grid,
        content: Callable[[int], RecordDict],
        kind: str,
        timeout: float,
        group: str,
        reconnect: float,
        unavailable: Callable[[RecordDict], bool],
        stop: Callable[[], None],
    ) -> None:
        self._grid, self._content, self._kind = grid, content, kind
        self._timeout, self._group, self._reconnect = timeout, group, reconnect
        self._unavailable, self._stop = unavailable, stop
        self._waiting: dict[int, _Node] = {}
        self._asked: OrderedDict[str, int] = OrderedDict()  # message id -> node
        self._ids: dict[int, set[str]] = {}  # node -> its message ids
        self._lost: set[int] = set()  # waiting nodes whose connection is broken
        self._begun = time.monotonic()
        self._looked = 0.0

    def run(self, nodes: list[int]) -> Iterator[Answer]:
        since = self._active_since() if self._reconnect else {}
        for node in nodes:
            self._waiting[node] = _Node(since.get(node, ""))
        for node in nodes:
            self._send(node)
        yield from self._given_up()
        while self._waiting:
            found = list(self._grid.pull_messages(self._asked.keys())) if self._asked else []
            for reply in found:
                yield from self._take(reply)
            if not self._waiting:
                return
            self._stop()
            if self._seconds > self._timeout and not found:
                break
            self._ask_again()
            yield from self._given_up()
            if not found and self._waiting:
                time.sleep(min(max(_SHORTEST, _SHARE * self._seconds), _LONGEST))
        for node, state in self._waiting.items():
            if state.broken is None:
                yield Answer(node, "late", self._timeout)
            else:
                yield Answer(node, "error", self._seconds, error=state.error)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._begun

    def _send(self, node: int) -> None:
        left = max(self._timeout - self._seconds, 1.0) if self._seconds > 1 else self._timeout
        message = Message(self._content(node), node, self._kind, ttl=left, group_id=self._group)
        identity = next(iter(self._grid.push_messages([message])), "")
        if identity:
            self._asked[identity] = node
            self._ids.setdefault(node, set()).add(identity)
        else:
            self._break(node, 0)  # it left since it was listed

    def _take(self, reply: Message) -> Iterator[Answer]:
        identity = reply.metadata.reply_to_message_id
        node = self._asked.pop(identity, None)
        if node is None:
            return  # an answer to something that nobody asked, or one too many
        self._ids[node].discard(identity)
        if reply.has_error():
            code = reply.error.code
            if self._ids[node]:
                return  # it was asked again meanwhile
            if code in _BROKEN and self._hopeful(node):
                self._break(node, code)
                return
            answer = Answer(node, "error", self._seconds, error=code)
        elif self._hopeful(node) and self._unavailable(reply.content):
            self._break(node, 0)
            return
        else:
            answer = Answer(node, "reply", self._seconds, content=reply.content)
        self._forget(node)
        yield answer

    def _hopeful(self, node: int) -> bool:
        """Whether there is time to wait for the node."""
        broken = self._waiting[node].broken
        since = self._seconds if broken is None else broken
        return self._seconds - since < self._reconnect and self._seconds < self._timeout

    def _break(self, node: int, error: int) -> None:
        state = self._waiting[node]
        state.error = error
        state.broken = self._seconds if state.broken is None else state.broken
        state.again = self._seconds + _AGAIN_SECONDS
        self._lost.add(node)

    def _forget(self, node: int) -> None:
        del self._waiting[node]
        self._lost.discard(node)
        for identity in self._ids.pop(node, ()):
            del self._asked[identity]

    def _given_up(self) -> Iterator[Answer]:
        """Answers for nodes whose connection has been broken for too long."""
        for node in sorted(self._lost):
            state = self._waiting[node]
            if state.broken is None or self._ids.get(node):
                continue
            if self._seconds - state.broken >= self._reconnect:
                self._forget(node)
                yield Answer(node, "error", self._seconds, error=state.error)

    def _ask_again(self) -> None:
        """Ask nodes again that are back, or that began anew and so forgot what they were asked."""
        if not self._reconnect or self._seconds - self._looked < _LOOK_SECONDS:
            return
        self._looked = self._seconds
        since = self._active_since()
        for node, state in self._waiting.items():
            if node not in since:
                continue  # offline: Flower answers for it in a while
            anew = since[node] != state.active_since
            due = state.again is not None and self._seconds >= state.again
            if anew or due:
                state.active_since, state.again = since[node], None
                self._send(node)

    def _active_since(self) -> dict[int, str]:
        """When each online node came online, where the grid knows."""
        get_nodes = getattr(self._grid, "get_nodes", None)
        if get_nodes is None:
            return dict.fromkeys(self._grid.get_node_ids(), "")
        return {node.node_id: node.last_activated_at for node in get_nodes()}
