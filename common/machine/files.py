"""Writing files so that nothing is ever half-written: temporary name, flush, rename."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from lorica.common.errors import Code, LoricaError


def write_atomically(path: Path, content: bytes | str, *, mode: int = 0o666) -> None:
    """Write a file whole or not at all; durable when the call returns.

    Args:
        path: the file.
        content: what will be all of it.
        mode: its permissions, less the process's mask, from the start.

    Raises:
        LoricaError: LOR-601 disk full, LOR-602 refused by the system; a file that was there
            before is unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = _temporary(path)
    with storage_errors(path):
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def create_atomically(path: Path, content: bytes, *, mode: int) -> bool:
    """Write a new file whole, with permissions ``mode`` from the start, over nothing.

    Returns:
        Whether it was written; False, with nothing changed, when ``path`` exists already.

    Raises:
        LoricaError: LOR-601 disk full, LOR-602 refused by the system; ``path`` does not exist.
    """
    temporary = _temporary(path)
    with storage_errors(path):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            try:
                path.hardlink_to(temporary)  # unlike a rename it fails where something is
            except FileExistsError:
                return False
            _sync_folder(path.parent)
            return True
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def make_private_folder(path: Path) -> None:
    """Make a folder that its owner alone can enter; one that is there is left as it is.

    Raises:
        LoricaError: LOR-601 disk full, LOR-602 refused by the system.
    """
    with storage_errors(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append one line durably; after a failure the file is as it was before, or absent.

    Raises:
        LoricaError: LOR-601, LOR-602.
    """
    with storage_errors(path):
        before = path.stat().st_size if path.exists() else None
        try:
            with path.open("ab") as file:
                file.write(f"{line}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            if before is None:
                _sync_folder(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                if before is None:
                    path.unlink()
                else:
                    os.truncate(path, before)
            raise


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors into coded ones that name ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise LoricaError(
                Code.STORAGE_FULL, f"{path} could not be written: the disk is full."
            ) from error
        raise LoricaError(
            Code.STORAGE_DENIED, f"{path}: {error.strerror or type(error).__name__}."
        ) from error


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
