"""A Flower grid whose sites live in this process.

Messages pass through Flower's real serialisation in both directions, and sites are called by
the same ClientApp as anywhere; what is left out is sockets, processes and polling. A site runs
when its reply is pulled, one per pull, so at most one update is in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


class InProcessGrid(Grid):
    """Calls a ClientApp for every message, in order."""

    def __init__(self, app: ClientApp, nodes: int) -> None:
        """
        Args:
            app: the sites' ClientApp.
            nodes: number of virtual nodes; node i + 1 is partition i.
        """
        self._app = app
        TaskIdentity.task_id, TaskIdentity.run_id = 1, 1  # Flower signs new messages with these
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        self._contexts = {
            partition + 1: Context(
                run_id=1,
                node_id=partition + 1,
                node_config={"partition-id": partition, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for partition in range(nodes)
        }
        self._waiting: dict[str, Message] = {}
        self._run = Run.create_empty(1)

    def set_run(self, run: Run) -> None:
        """Take over Flower's record of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's record of the run."""
        return self._run

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

    def get_node_ids(self) -> Iterable[int]:
        """All virtual nodes, always online."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; their sites run when replies are pulled."""
        ids = []
        for message in messages:
            identity = str(uuid4())
            message.metadata.__dict__["_message_id"] = identity
            self._waiting[identity] = message
            ids.append(identity)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the next of these messages' sites and return its reply."""
        for identity in message_ids:
            message = self._waiting.pop(identity, None)
            if message is not None:
                return [self._deliver(message)]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and pull all replies."""
        waiting = list(self.push_messages(messages))
        return [reply for _ in waiting for reply in self.pull_messages(waiting)]

    def _deliver(self, message: Message) -> Message:
        arrived = _through_the_wire(message)
        try:
            reply = self._app(arrived, self._contexts[arrived.metadata.dst_node_id])
        except Exception as error:  # noqa: BLE001 - as Flower does: an error reply, not a crash
            reply = Message(
                Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=arrived
            )
        return _through_the_wire(reply)


def _through_the_wire(message: Message) -> Message:
    packed = message_to_proto(message).SerializeToString()
    return message_from_proto(ProtoMessage.FromString(packed))
