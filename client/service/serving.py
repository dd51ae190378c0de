"""The trainer's gRPC server behind the door of its socket, with health checking."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from lorica.client.answering.trainer_pb2 import DESCRIPTOR
from lorica.client.answering.trainer_pb2_grpc import add_TrainerServicer_to_server
from lorica.client.service.peers import Door
from lorica.client.service.queue import TrainerService
from lorica.client.service.socket_file import SocketFile, check_length

_NAMES = ("", DESCRIPTOR.services_by_name["Trainer"].full_name)
_LAST_WORDS = 1.0  # seconds for replies that are on their way when serving ends


class Serving:
    """Serves one trainer on one socket."""

    def __init__(
        self, service: TrainerService, file: SocketFile, *, users: list[int], message_bytes: int
    ) -> None:
        """
        Args:
            service: answers the calls.
            file: the socket.
            users: numbers of further users that are let in.
            message_bytes: largest request that is taken.

        Raises:
            LoricaError: LOR-714 the socket cannot be used.
        """
        self._service = service
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ]
        )
        add_TrainerServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        inner = file.inner_folder / "s"
        check_length(inner)
        self._server.add_insecure_port(f"unix:{inner}")
        self._door = Door(file.listening, inner, users)

    async def start(self) -> None:
        """Begin to answer."""
        await self._server.start()
        for name in _NAMES:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._door.open()

    async def end(self, grace: float) -> bool:
        """Finish what is worked on, if it takes at most ``grace`` seconds, and end.

        Returns:
            Whether nothing was abandoned.
        """
        await self._health.enter_graceful_shutdown()
        finished = await self._service.end(grace)
        await self._server.stop(_LAST_WORDS)
        await self._door.close()
        return finished
