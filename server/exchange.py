"""Send messages to sites and take their answers as they come, each with its own deadline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

_POLL_SECONDS = 0.2


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


def exchange(
    grid: Grid, nodes: list[int], content: RecordDict, kind: str, *, timeout: float, group: str
) -> Iterator[Answer]:
    """One message with the same content to every node; answers as they arrive.

    Every node is answered for exactly once. Answers that come after the deadline are never
    pulled: their message ids are forgotten.

    Args:
        grid: Flower's grid.
        nodes: ids of the nodes.
        content: the packed request.
        kind: Flower message type, such as "train" or "query.capabilities".
        timeout: seconds to wait for each node, and the messages' time to live.
        group: Flower's group id, such as the round.
    """
    begun = time.monotonic()
    pending: dict[str, int] = {}
    lost = []
    for node in nodes:
        message = Message(content, node, kind, ttl=timeout, group_id=group)
        identity = next(iter(grid.push_messages([message])), "")
        if identity:
            pending[identity] = node
        else:
            lost.append(node)  # it left since it was listed
    for node in lost:
        yield Answer(node, "error", 0.0)
    while pending:
        replies = list(grid.pull_messages(list(pending)))
        now = time.monotonic() - begun
        for reply in replies:
            sender = pending.pop(reply.metadata.reply_to_message_id, None)
            if sender is None:
                continue  # an answer to something that nobody asked
            if reply.has_error():
                yield Answer(sender, "error", now, error=reply.error.code)
            else:
                yield Answer(sender, "reply", now, content=reply.content)
        if not replies and pending:
            if now > timeout:
                break
            time.sleep(_POLL_SECONDS)
    for node in pending.values():
        yield Answer(node, "late", timeout)
