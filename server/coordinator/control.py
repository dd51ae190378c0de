"""Flower's Control interface, on the SuperLink's private port: nodes and runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from lorica.common.errors import Code, LoricaError
from lorica.common.wire.bundle import RUN_KEY
from lorica.server.coordinator.home import CoordinatorHome


@dataclass(frozen=True)
class Node:
    """A SuperNode that the SuperLink knows."""

    node: int
    public_key: bytes
    name: str
    online: bool


@dataclass(frozen=True)
class FlowerRun:
    """A run that the SuperLink knows."""

    run: int
    over: bool
    status: str
    """Such as "running" or "finished:failed"."""
    details: str


class Control:
    """What Lorica asks of a SuperLink."""

    def __init__(self, home: CoordinatorHome) -> None:
        """``home``: the coordinator whose SuperLink it is."""
        self._address = f"127.0.0.1:{home.config().private_port}"
        self._authority = home.authority / "ca.crt"

    def nodes(self) -> list[Node]:
        """All registered nodes. Raises LOR-727."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with self._client() as client:
            found = client.ListNodes(ListNodesRequest()).nodes_info  # type: ignore[attr-defined]
        return [
            Node(node.node_id, node.public_key, node.name, node.status == "online")
            for node in found
            if node.status != "unregistered"
        ]

    def register(self, public_key: str, name: str) -> int:
        """Register a node's OpenSSH public key and return the node's id. Raises LOR-727."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        request = RegisterNodeRequest(public_key=key_bytes(public_key), name=name)
        with self._client() as client:
            node: int = client.RegisterNode(request).node_id  # type: ignore[attr-defined]
        return node

    def unregister(self, node: int) -> None:
        """Put a node out. Raises LOR-727."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        with self._client() as client:
            client.UnregisterNode(UnregisterNodeRequest(node_id=node))  # type: ignore[attr-defined]

    def start(self, bundle: bytes, run: str) -> int:
        """Start a Flower run of a bundle for the Lorica run ``run``. Raises LOR-727."""
        import hashlib

        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        request = StartRunRequest(
            fab=fab_to_proto(fab), override_config=user_config_to_proto({RUN_KEY: run})
        )
        with self._client() as client:
            answer = client.StartRun(request)  # type: ignore[attr-defined]
        if not answer.HasField("run_id"):
            raise LoricaError(Code.COORDINATOR_DOWN, "The SuperLink did not take the run.")
        return int(answer.run_id)

    def stop(self, run: int) -> None:
        """Stop a Flower run. Raises LOR-727."""
        from flwr.proto.control_pb2 import StopRunRequest

        with self._client() as client:
            client.StopRun(StopRunRequest(run_id=run))  # type: ignore[attr-defined]

    def run(self, run: int) -> FlowerRun | None:
        """What the SuperLink says of a run; None when it does not know it. Raises LOR-727."""
        import httpx
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._client() as client:
            try:
                found = client.ListRuns(ListRunsRequest(run_id=run)).run_dict  # type: ignore[attr-defined]
            except httpx.HTTPStatusError:
                return None
        if run not in found:
            return None
        status = found[run].status
        text = f"{status.status}:{status.sub_status}".rstrip(":")
        return FlowerRun(run, status.status == "finished", text, status.details)

    @contextlib.contextmanager
    def _client(self) -> Iterator[object]:
        import httpx
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        try:
            client = ControlHttpClient.from_server_address(
                server_address=self._address,
                insecure=False,
                root_certificates=str(self._authority),
                interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            )
        except OSError as error:
            raise LoricaError(
                Code.FEDERATION_MISSING, f"{self._authority}: {error.strerror}."
            ) from error
        try:
            yield client
        except httpx.HTTPStatusError as error:
            raise LoricaError(
                Code.COORDINATOR_DOWN,
                f"The SuperLink at {self._address} refused: {error.response.text[:300]}",
            ) from error
        except httpx.HTTPError as error:
            raise LoricaError(
                Code.COORDINATOR_DOWN, f"The SuperLink at {self._address} does not answer: {error}."
            ) from error
        finally:
            client.close()


def key_bytes(public_key: str) -> bytes:
    """An OpenSSH public key as Flower holds it."""
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    return public_key_to_bytes(load_ssh_public_key(public_key.encode()))
