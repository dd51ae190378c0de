"""Writing files so that nothing is ever half-written: temporary name, flush, rename."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from lorica.common.errors import Code, LoricaError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all; durable when the call returns.

    Raises:
        LoricaError: LOR-601 disk full, LOR-602 refused by the system; a file that was there
            before is unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with storage_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
