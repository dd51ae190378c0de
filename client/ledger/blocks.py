"""Composed blocks on the disk, so that a restart need not compose a long history anew.

A convenience that can be deleted at any time. A block is found by a hash of the events it
composes and carries a digest of itself, so a damaged or stale one is not used but composed
anew. Any trouble with the file, a full disk included, switches the cache off and nothing else.
The digest guards against accidents, not against somebody who writes blocks of their own, and a
block that understates makes the ledger charge too little. So a file is used only if nobody but
this user can write it, or put another (or SQLite's journal of one) in its place; and ``lorica site
ledger verify`` composes from the entries alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import stat
import struct
from pathlib import Path

import numpy as np

from lorica.client.ledger.losses import Block, Loss

SUFFIX = "-composed"
_LIMIT_BYTES = 256_000_000
_LOOK_BYTES = 8_000_000  # that are written before it is looked whether the file is full
_LEAST_LEVEL = 2  # blocks of fewer than 4 events are quicker made than kept

_log = logging.getLogger("lorica.site")


def cache_path(ledger: Path) -> Path:
    """Where a ledger's composed blocks are."""
    return ledger.with_name(ledger.name + SUFFIX)


class BlockFile:
    """A :class:`~lorica.client.ledger.composer.BlockStore` in an SQLite file."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """
        Args:
            path: the file; opened when first needed.
            read_only: look blocks up, but make no file and keep nothing.
        """
        self._path = path
        self._read_only = read_only
        self._connection: sqlite3.Connection | None = None
        self._off = False
        self._more = _LOOK_BYTES  # written since it was looked; at first it is not known

    def get(self, key: str) -> Block | None:
        """The block kept under ``key``; None when there is none, or it is damaged."""
        try:
            rows = self._open().execute("SELECT digest, block FROM blocks WHERE key = ?", (key,))
            for digest, block in rows:
                if digest == _digest(key, block):
                    return _unpack(block)
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError, struct.error):
            self._give_up()
        return None

    def put(self, key: str, level: int, block: Block) -> None:
        """Keep a block; the smallest make room when the file is full."""
        if level < _LEAST_LEVEL or self._read_only:
            return
        data = _pack(block)
        try:
            connection = self._open()
            connection.execute(
                "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?, ?)",
                (key, level, len(data), _digest(key, data), data),
            )
            self._more += len(data)
            if self._more < _LOOK_BYTES:  # adding up all sizes takes the longer the more there are
                return
            self._more = 0
            total = connection.execute("SELECT coalesce(sum(size), 0) FROM blocks").fetchone()[0]
            while total > _LIMIT_BYTES:
                victim, size = connection.execute(
                    "SELECT rowid, size FROM blocks ORDER BY level, rowid LIMIT 1"
                ).fetchone()
                connection.execute("DELETE FROM blocks WHERE rowid = ?", (victim,))
                total -= size
        except (sqlite3.Error, OSError, TypeError):
            self._give_up()

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._off:
            raise sqlite3.OperationalError("switched off")
        if self._connection is None:
            _require_own(self._path, create=not self._read_only)
        if self._connection is None and self._read_only:
            self._connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0
            )
        if self._connection is None:
            self._connection = sqlite3.connect(
                self._path, timeout=1.0, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS blocks (key TEXT PRIMARY KEY, level INTEGER, "
                "size INTEGER, digest TEXT, block BLOB)"
            )
        return self._connection

    def _give_up(self) -> None:
        self._off = True
        self.close()


def _require_own(path: Path, *, create: bool) -> None:
    """Return if nobody else can write the file or its folder; made where it is absent.

    Raises:
        OSError: somebody can, or it is no file.
    """
    flags = os.O_CREAT | os.O_RDWR if create else os.O_RDONLY
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        file, folder = os.fstat(descriptor), path.absolute().parent.stat()
    finally:
        os.close(descriptor)
    owners = {os.geteuid(), 0}  # root can anyway
    mine = {file.st_uid, folder.st_uid} <= owners
    if not mine or not stat.S_ISREG(file.st_mode) or (file.st_mode | folder.st_mode) & 0o022:
        _log.warning("others can write %s or its folder: no composition is kept there", path)
        raise PermissionError(f"{path} is not written by this user alone")


def _digest(key: str, data: bytes) -> str:
    return hashlib.sha256(key.encode() + data).hexdigest()


def _pack(block: Block) -> bytes:
    losses = (block.remove, block.add)
    head = [[loss.interval, loss.lower, loss.infinity, len(loss.masses)] for loss in losses]
    text = json.dumps(head).encode()
    arrays = b"".join(loss.masses.astype("<f8").tobytes() for loss in losses)
    return struct.pack("<I", len(text)) + text + arrays


def _unpack(data: bytes) -> Block:
    (length,) = struct.unpack_from("<I", data)
    start, losses = 4 + length, []
    for interval, lower, infinity, size in json.loads(data[4:start]):
        masses = np.frombuffer(data, "<f8", size, start).astype(np.float64)
        losses.append(Loss(interval, lower, masses, infinity))
        start += 8 * size
    remove, add = losses
    return Block(remove, add)
