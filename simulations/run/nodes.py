"""Virtual sites' nodes and their messages as bytes, for grid and workers."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity


class VirtualNodes:
    """The sites' ClientApp, and what Flower keeps for each of its nodes."""

    def __init__(self, app: ClientApp, nodes: int) -> None:
        """
        Args:
            app: the sites' ClientApp.
            nodes: number of virtual nodes; node i + 1 is partition i.
        """
        self._app = app
        TaskIdentity.task_id, TaskIdentity.run_id = 1, 1  # Flower signs new messages with these
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        self._count = nodes
        self._contexts: dict[int, Context] = {}  # of nodes that were asked

    def ids(self) -> list[int]:
        """All virtual nodes."""
        return list(range(1, self._count + 1))

    def answer(self, content: bytes) -> bytes:
        """The serialised reply to a serialised message; an exception becomes an error reply."""
        message = unpacked(content)
        try:
            reply = self._app(message, self._context(message.metadata.dst_node_id))
        except Exception as error:  # noqa: BLE001 - as Flower does: an error reply, not a crash
            reply = Message(
                Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message
            )
        return packed(reply)

    def _context(self, node: int) -> Context:
        if not 1 <= node <= self._count:
            raise LookupError(f"There is no node {node}.")
        if node not in self._contexts:
            self._contexts[node] = Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": node - 1, "num-partitions": self._count},
                state=RecordDict(),
                run_config={},
            )
        return self._contexts[node]


def packed(message: Message) -> bytes:
    """A message as Flower sends it."""
    return bytes(message_to_proto(message).SerializeToString())


def unpacked(content: bytes) -> Message:
    """The inverse of :func:`packed`."""
    return message_from_proto(ProtoMessage.FromString(content))


class LocalGrid(Grid):
    """What the grids of one machine have in common: they push, then pull until all have replied."""

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and pull all replies."""
        waiting = list(self.push_messages(messages))
        return [reply for _ in waiting for reply in self.pull_messages(waiting)]
