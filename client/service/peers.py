"""The door of the trainer's socket: who connects is checked before a byte of theirs is read.

gRPC for Python does not tell who is at the other end of a Unix socket. So the socket that others
see is a door of our own: for every connection it asks the kernel who made it (``SO_PEERCRED``:
the user at the time of ``connect``, which no peer can set), and only then passes bytes, unread, to
and from the gRPC server, which listens on a second socket in a folder that this user alone may
search.

Formal guarantee:
    A request reaches the trainer only from a process of this process's own user, of a user that
    ``trainer.users`` in site.toml lists, or of root, whom no permission of the file system holds
    off. Where the system has no ``SO_PEERCRED`` (macOS), the same follows for this user and root
    from the modes of socket (0600) and folder, and no other user can be listed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Collection
from pathlib import Path

from lorica.common.errors import Code, LoricaError

_CHUNK = 1 << 18
_PEER = getattr(socket, "SO_PEERCRED", None)
_log = logging.getLogger("lorica.site")


class Door:
    """Passes connections of allowed users on to the server behind it."""

    def __init__(self, listening: socket.socket, inner: Path, users: Collection[int]) -> None:
        """
        Args:
            listening: the socket that others connect to.
            inner: path of the socket that the server listens on.
            users: numbers of the users that are let in besides this process's own.

        Raises:
            LoricaError: LOR-714 users are listed where the system cannot tell who connects.
        """
        if users and _PEER is None:
            raise LoricaError(
                Code.TRAINER_SOCKET,
                "trainer.users lists other users, but this system cannot tell who connects.",
            )
        self._listening, self._inner = listening, inner
        self._users = {os.geteuid(), 0, *users}
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Let connections in from now on."""
        self._server = await asyncio.start_unix_server(self._arrived, sock=self._listening)

    async def close(self) -> None:
        """Let nobody in any more, and hang up on whoever is in."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._pass(reader, writer)
        finally:
            self._open.discard(task)
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._allowed(writer.get_extra_info("socket")):
            return
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(self._inner)
        except OSError as error:
            _log.warning("the server behind the socket does not answer: %s", error.strerror)
            return
        ways = [
            asyncio.create_task(_copy(reader, inner_writer)),
            asyncio.create_task(_copy(inner_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            inner_writer.close()

    def _allowed(self, connection: socket.socket) -> bool:
        if _PEER is None:
            return True
        found = connection.getsockopt(socket.SOL_SOCKET, _PEER, struct.calcsize("iII"))
        process, user, _ = struct.unpack("iII", found)
        if user in self._users:
            return True
        _log.warning("hung up on process %d of user %d, who is not allowed", process, user)
        return False


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until either end hangs up."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        await writer.drain()
