"""A Flower grid whose sites live in this process, or in workers of this machine.

Messages pass through Flower's real serialisation in both directions, and sites are called by
the same ClientApp as anywhere; what is left out is sockets and polling. Without workers
(:mod:`lorica.simulations.run.workers`) a site runs when its reply is pulled, one per pull, so at
most one update is in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    from lorica.simulations.run.workers import SiteWorkers


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


class InProcessGrid(Grid):
    """Calls a ClientApp for every message; replies come in the order of the messages."""

    def __init__(self, app: ClientApp, nodes: int, workers: SiteWorkers | None = None) -> None:
        """
        Args:
            app: the sites' ClientApp; not called where there are workers, which have their own.
            nodes: number of virtual nodes; node i + 1 is partition i.
            workers: processes that run the sites; None runs them in this one.
        """
        self._nodes = VirtualNodes(app, nodes)
        self._workers = workers
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
        return self._nodes.ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; their sites run when replies are pulled, or in workers from now on."""
        ids = []
        for message in messages:
            identity = str(uuid4())
            message.metadata.__dict__["_message_id"] = identity
            self._waiting[identity] = message
            ids.append(identity)
            if self._workers is not None:
                self._workers.ask(identity, message.metadata.dst_node_id - 1, _packed(message))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the next of these messages' sites, or wait for its worker, and return its reply.

        Raises:
            LoricaError: LOR-511 when a worker died.
        """
        for identity in message_ids:
            message = self._waiting.pop(identity, None)
            if message is None:
                continue
            if self._workers is not None:
                return [_unpacked(self._workers.reply(identity))]
            return [_unpacked(self._nodes.answer(_packed(message)))]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and pull all replies."""
        waiting = list(self.push_messages(messages))
        return [reply for _ in waiting for reply in self.pull_messages(waiting)]


def _packed(message: Message) -> bytes:
    return bytes(message_to_proto(message).SerializeToString())


def _unpacked(packed: bytes) -> Message:
    return message_from_proto(ProtoMessage.FromString(packed))
