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

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.supercore.run import Run

from lorica.simulations.run.nodes import LocalGrid, VirtualNodes, packed, unpacked

if TYPE_CHECKING:
    from lorica.simulations.run.workers import Workers


class InProcessGrid(LocalGrid):
    """Calls a ClientApp for every message; replies come in the order of the messages."""

    def __init__(self, app: ClientApp, nodes: int, workers: Workers | None = None) -> None:
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
                self._workers.ask(identity, message.metadata.dst_node_id - 1, packed(message))
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
                return [unpacked(self._workers.reply(identity))]
            return [unpacked(self._nodes.answer(packed(message)))]
        return []
