"""Sites that a coordinator's register knows, on a grid that says which key each node holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo

from lorica.common.wire.invitation import Invitation, Registration
from lorica.server.coordinator.control import key_bytes
from lorica.server.coordinator.register import Register
from lorica.simulations.run.grid import InProcessGrid


def admitted(register: Register, name: str, key: ec.EllipticCurvePrivateKey) -> str:
    """Invite a site and admit it with its key; the public half, as the register holds it."""
    expires = datetime.now(UTC) + timedelta(days=1)
    invitation = Invitation(
        site=name,
        address="localhost:8443",
        authority="unused",
        coordinator="0" * 64,
        expires=expires,
        secret=register.invite(name, timedelta(days=1)).secret,
    )
    return register.admit(Registration.make(invitation, key)).public_key


class RegisteredGrid(InProcessGrid):
    """As the SuperLink's: node i + 1 proved that it holds the i-th key."""

    def __init__(self, app: ClientApp, public_keys: list[str]) -> None:
        super().__init__(app, len(public_keys))
        self._keys = [key_bytes(public) for public in public_keys]

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=i + 1, public_key=key) for i, key in enumerate(self._keys)]
