"""Which registered site a node is: by the key that the node proved to the SuperLink."""

from __future__ import annotations

from flwr.serverapp import Grid

from lorica.server.coordinator.control import key_bytes
from lorica.server.coordinator.register import Register
from lorica.server.rounds.known import KnownSite


class RegisterDirectory:
    """The coordinator's register, asked by a run."""

    def __init__(self, grid: Grid, register: Register) -> None:
        """
        Args:
            grid: says which key each node holds.
            register: says whose key that is.
        """
        self._grid, self._register = grid, register

    def sites(self) -> dict[int, KnownSite]:
        """The admitted site of every node that is online; read anew, so that a site that was
        revoked is none from then on.

        Raises:
            LoricaError: LOR-723 the register is damaged.
        """
        known = {
            key_bytes(entry.public_key): KnownSite(entry.name, entry.public_key)
            for entry in self._register.sites().values()
            if entry.state == "admitted" and entry.public_key
        }
        held = {node.node_id: bytes(node.public_key) for node in self._grid.get_nodes()}
        return {node: known[key] for node, key in held.items() if key in known}
