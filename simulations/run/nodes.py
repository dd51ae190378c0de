"""Virtual sites' nodes and their messages as bytes, for grid and workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    pass


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

    def ids(self) -> list[int]:
        """All virtual nodes."""
        return list(self._contexts)

    def answer(self, packed: bytes) -> bytes:
        """The serialised reply to a serialised message; an exception becomes an error reply."""
        message = _unpacked(packed)
        try:
            reply = self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # noqa: BLE001 - as Flower does: an error reply, not a crash
            reply = Message(
                Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message
            )
        return _packed(reply)


def _packed(message: Message) -> bytes:
    return bytes(message_to_proto(message).SerializeToString())


def _unpacked(packed: bytes) -> Message:
    return message_from_proto(ProtoMessage.FromString(packed))
