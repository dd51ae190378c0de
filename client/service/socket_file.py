"""The trainer's Unix socket as a file: one owner, and nobody else's folder.

The kernel lets a process connect to a socket only if it may write the socket's file and search
every folder above it. One trainer at a time owns the file: it holds a lock beside it for as long
as it lives, so what a killed one left behind is told from a living one without guessing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from pathlib import Path

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors

_LONGEST = 100  # bytes of a path; the system's limit is 107 on Linux, 103 on macOS


class SocketFile:
    """A listening Unix socket and the lock that makes it this process's own."""

    def __init__(self, path: Path, *, others: bool = False) -> None:
        """Take the path over and listen there.

        Args:
            path: of the socket; its folder is made, for this user alone, if it is absent.
            others: whether other users may connect, too (who they are is then checked by
                :mod:`lorica.client.service.peers`); mode 0666 instead of 0600.

        Raises:
            LoricaError: LOR-713 a living trainer has it, LOR-714 it cannot be used, LOR-60x.
        """
        self.path = path.absolute()
        check_length(self.path)
        with storage_errors(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_folder()
            self._lock = os.open(
                self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600
            )
            try:
                self._own()
                self.listening = self._listen(0o666 if others else 0o600)
            except BaseException:
                os.close(self._lock)
                raise

    @property
    def inner_folder(self) -> Path:
        """A folder beside the socket that this user alone may search."""
        folder = self.path.with_name(f".{self.path.name}.d")
        with storage_errors(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                raise LoricaError(
                    Code.TRAINER_SOCKET, f"{folder} is not a folder of this user's own."
                )
            folder.chmod(0o700)
        return folder

    def close(self) -> None:
        """Remove the socket and let others have the path."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.listening.close()
        os.close(self._lock)

    def _check_folder(self) -> None:
        folder = self.path.parent
        found = folder.stat()
        if found.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(found.st_mode) & 0o022:
            raise LoricaError(
                Code.TRAINER_SOCKET,
                f"Others could replace the socket: {folder} has mode "
                f"{stat.S_IMODE(found.st_mode):04o} and is owned by user {found.st_uid}.",
                mend=f"chmod 700 {folder}",
            )

    def _own(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise LoricaError(
                Code.TRAINER_RUNNING, f"A trainer (process {pid}) serves {self.path} already."
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _listen(self, mode: int) -> socket.socket:
        try:
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise LoricaError(Code.TRAINER_SOCKET, f"{self.path} exists and is not a socket.")
            self.path.unlink()
        except FileNotFoundError:
            pass
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)  # nobody can connect between bind and chmod
        try:
            listening.bind(str(self.path))
        finally:
            os.umask(before)
        self.path.chmod(mode)
        listening.listen(64)
        listening.setblocking(False)
        return listening


def check_length(path: Path) -> None:
    """Raise LOR-714 if the path is too long for a Unix socket."""
    if len(os.fsencode(path)) > _LONGEST:
        raise LoricaError(
            Code.TRAINER_SOCKET,
            f"The socket's path has {len(os.fsencode(path))} bytes, the system allows about "
            f"{_LONGEST}: {path}",
            mend="Set trainer.socket in site.toml to a shorter path, such as "
            '"/run/lorica/NAME/trainer.sock".',
        )
