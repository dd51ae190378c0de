"""Cached states in files, memory-mapped: for data sets larger than memory, and across restarts.

**A file holds a function of private texts and is as private as they are**: states of a layer give
much of a text back. It belongs in the site's own folder, is readable by its owner alone from its
first byte on, and never leaves.

Nothing is trusted because of its name. A file is used only if it is a regular file of this user
with no permission for others, its header names what was asked for, and its content has the
SHA-256 of the header; else it is made anew. It is written under a temporary name, flushed and
renamed, so there is no half a file, also with several processes in one folder. What a killed
writer leaves is removed by whoever uses the folder next: it is as private as a whole file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorica.common.machine.files import make_private_folder, storage_errors

_FORMAT = 1
_HEADER_BYTES = 4096  # a page, so that the numbers after it are aligned
_CHUNK = 2**24
_SUFFIX = ".states"
_TEMPORARY = f".*{_SUFFIX}.*.tmp"
_log = logging.getLogger("lorica.cache")

Fill = Callable[[torch.Tensor], None]
"""Writes all values of a tensor that it is given."""


class CacheFolder:
    """Arrays of float32 by key, each in a file of its own."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """
        Args:
            folder: made when something is written, readable by its owner alone.
            limit_bytes: of all files together; those not used for longest go first.
        """
        self.folder, self._limit = folder, limit_bytes

    def get(self, key: str, shape: tuple[int, int], fill: Fill) -> torch.Tensor | None:
        """The array of a key, mapped from its file; made if it is not there or not whole.

        Changes to the tensor stay in this process. None, with a line in the log, where it is
        larger than the folder's limit or the disk is full.

        Args:
            key: says all that the values depend on.
            shape: rows and width.
            fill: computes the values.

        Raises:
            LoricaError: LOR-602 the folder cannot be used.
        """
        header = {"format": _FORMAT, "key": key, "shape": list(shape), "sha256": ""}
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}{_SUFFIX}"
        size = _HEADER_BYTES + 4 * shape[0] * shape[1]
        if size > self._limit or not shape[0]:
            return None
        with storage_errors(self.folder):
            make_private_folder(self.folder)
            self._sweep()
            found = _opened(path, header, size, shape)
            if found is None:
                self._make_room(size)
                try:
                    found = _written(path, header, size, shape, fill)
                except OSError as error:
                    _log.warning("%s could not be written: %s", path, error.strerror)
                    return None
            with contextlib.suppress(FileNotFoundError):  # another process has made room
                os.utime(path)
            return torch.from_numpy(found)

    def _sweep(self) -> None:
        """Remove what killed writers left; a living one locks its file while that is empty."""
        for path in self.folder.glob(_TEMPORARY):
            with contextlib.suppress(OSError):
                flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
                with os.fdopen(os.open(path, flags), "rb") as file:
                    if os.fstat(file.fileno()).st_size:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        path.unlink()

    def _make_room(self, size: int) -> None:
        """Remove files until so many bytes more are within the limit, to which also the files count
        that others are writing."""
        total = size + sum(_stat(path)[1] for path in self.folder.glob(_TEMPORARY))
        files = sorted((*_stat(path), path) for path in self.folder.glob(f"*{_SUFFIX}"))
        total += sum(held for _, held, _ in files)
        for _, held, path in files:
            if total <= self._limit:
                break
            total -= held
            path.unlink(missing_ok=True)  # whoever has it mapped keeps it until it ends


def remove_all(folder: Path) -> int:
    """Remove every file of cached states, whole or not, from a folder; returns how many there were.

    Raises:
        LoricaError: LOR-602.
    """
    with storage_errors(folder):
        files = [*folder.glob(f"*{_SUFFIX}"), *folder.glob(_TEMPORARY)]
        for path in files:
            path.unlink(missing_ok=True)
    return len(files)


def _stat(path: Path) -> tuple[float, int]:
    """Time of the last use and bytes; nothing of a file that another process has removed."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0.0, 0
    return found.st_mtime, found.st_size


def _opened(
    path: Path, header: dict[str, Any], size: int, shape: tuple[int, int]
) -> np.memmap | None:
    """The array of a file that is this user's alone, is what was asked for, and is undamaged; it
    stays whole if another process removes the file."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            found = os.fstat(file.fileno())
            own = found.st_uid == os.geteuid() and not found.st_mode & 0o077
            if not (stat.S_ISREG(found.st_mode) and own and found.st_size == size):
                return None
            said = json.loads(file.read(_HEADER_BYTES))
            if {**said, "sha256": ""} != header or said["sha256"] != _sha256(file):
                return None
            return _mapped(file, shape, "c")
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _written(
    path: Path, header: dict[str, Any], size: int, shape: tuple[int, int], fill: Fill
) -> np.memmap:
    """The array of a file that is made here."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(temporary, flags, 0o600), "r+b") as file:
            with contextlib.suppress(OSError):  # where there are no locks, nothing is swept
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says that its writer lives
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is told here, not by SIGBUS
            values = _mapped(file, shape, "r+")
            fill(torch.from_numpy(values))
            values.flush()
            file.seek(_HEADER_BYTES)
            text = json.dumps(header | {"sha256": _sha256(file)}).encode()
            file.seek(0)
            file.write(text.ljust(_HEADER_BYTES))
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
            return _mapped(file, shape, "c")
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _mapped(file: Any, shape: tuple[int, int], mode: Any) -> np.memmap:
    return np.memmap(file, dtype="<f4", mode=mode, offset=_HEADER_BYTES, shape=shape)


def _sha256(file: Any) -> str:
    """Of what is left of the file."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
