"""The thin ClientApp's way to the site's trainer: bytes in, bytes out, nothing opened.

The ClientApp runs in the process tree that has the network. It holds no records and no model: it
passes a request on to the trainer's Unix socket and the trainer's reply back. The trainer checks
everything itself, so nothing rests on this side.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import grpc
from flwr.app import Context

from lorica.client.answering.trainer_pb2 import Content
from lorica.client.answering.trainer_pb2_grpc import TrainerStub
from lorica.common.errors import Code, LoricaError

SOCKET_KEY = "trainer-socket"
WAIT_KEY = "trainer-wait"
WAIT_SECONDS = 30.0
"""How long a trainer that does not answer is waited for: a supervised one comes back."""
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
]
"""Of channels to a trainer; the trainer bounds what it takes."""

_AGAIN_SECONDS = 0.5
_CALLS = {"capabilities": "Capabilities", "train": "Train", "evaluate": "Evaluate"}
_log = logging.getLogger("lorica.site")


class SocketForwarder:
    """Passes requests to the trainer that listens on a Unix socket."""

    def __init__(self, path: Path, *, wait: float = WAIT_SECONDS) -> None:
        """
        Args:
            path: of the trainer's socket.
            wait: longest time to wait for a trainer that is not there, seconds.
        """
        self._path, self._wait = path, wait

    def forward(self, method: str, content: bytes) -> bytes:
        """The trainer's serialised reply.

        A trainer that goes away meanwhile is asked again when it is back: its ledger makes the
        same request cost nothing more.

        Raises:
            LoricaError: LOR-711 the trainer is not there, LOR-712 it has too much to do, LOR-501
                the message is larger than it takes.
        """
        deadline = time.monotonic() + self._wait
        with grpc.insecure_channel(f"unix:{self._path}", options=OPTIONS) as channel:
            call = getattr(TrainerStub(channel), _CALLS[method])
            while True:
                try:
                    for event in call(Content(record=content)):
                        deadline = time.monotonic() + self._wait  # it is there
                        if event.WhichOneof("kind") == "reply":
                            return bytes(event.reply.record)
                    raise LoricaError(Code.TRAINER_DOWN, "The trainer's answer ended early.")
                except grpc.RpcError as error:
                    problem = self._problem(error)
                    if problem.code is not Code.TRAINER_DOWN or time.monotonic() >= deadline:
                        raise problem from None
                    _log.info("waiting for the trainer at %s", self._path)
                    time.sleep(_AGAIN_SECONDS)

    def _problem(self, error: grpc.RpcError) -> LoricaError:
        status, said = error.code(), error.details()
        if status is grpc.StatusCode.RESOURCE_EXHAUSTED and "message" not in str(said):
            return LoricaError(Code.TRAINER_BUSY, "The trainer has too many requests in hand.")
        if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return LoricaError(
                Code.MESSAGE_MALFORMED, "The request is larger than trainer.message_bytes allows."
            )
        return LoricaError(
            Code.TRAINER_DOWN, f"No trainer answers at {self._path}: {status.name}, {said}."
        )


def trainer_of(context: Context) -> SocketForwarder:
    """Entry point: the way to the trainer whose socket the node's config names.

    The config key "trainer-wait" changes how long a trainer is waited for, in seconds.

    Raises:
        LoricaError: LOR-711 the config's values cannot be.
    """
    path, wait = context.node_config[SOCKET_KEY], context.node_config.get(WAIT_KEY, WAIT_SECONDS)
    if not isinstance(path, str) or not isinstance(wait, int | float):
        raise LoricaError(
            Code.TRAINER_DOWN,
            f"{SOCKET_KEY} must be the path of a trainer's socket and {WAIT_KEY} a number.",
        )
    return SocketForwarder(Path(path), wait=float(wait))
