"""Vectors of integers modulo a power of two: masks from AES-256-CTR, and bytes on the wire."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
_CHUNK = 2**16  # values made at once: what stays in a core's cache
_ZEROS = bytes(8 * _CHUNK)

Vector = npt.NDArray[np.uint64]
"""Integers modulo 2^64, of which a power of two below is a quotient: shape (values,)."""


def add_mask(vector: Vector, key: bytes, sign: int) -> None:
    """Add (+1) or take away (-1), in place, the mask that a key of 32 bytes stands for.

    The mask is the key stream of AES-256-CTR from counter 0 as little-endian 64-bit words; the key
    must stand for this one vector alone.
    """
    encryptor = Cipher(AES(key), CTR(bytes(16))).encryptor()
    buffer = bytearray(8 * _CHUNK + 15)
    for first in range(0, len(vector), _CHUNK):
        part = vector[first : first + _CHUNK]
        encryptor.update_into(memoryview(_ZEROS)[: 8 * len(part)], buffer)
        mask = np.frombuffer(buffer, dtype="<u8", count=len(part))
        if sign > 0:
            np.add(part, mask, out=part)
        else:
            np.subtract(part, mask, out=part)


def mask_key(context: bytes, secret: bytes) -> bytes:
    """The key of the mask that a secret stands for in a sum: a site's own or a pair's."""
    return HKDF(SHA256(), KEY_BYTES, salt=context, info=b"lorica mask").derive(secret)


def key_stream(key: bytes, length: int) -> bytes:
    """The first bytes of the same key stream; for keys that stand for no vector."""
    return Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(length))


def pack(vector: Vector, bits: int) -> bytes:
    """The vector modulo 2^bits, bits/8 bytes a value, little-endian.

    Args:
        vector: shape (values,).
        bits: a multiple of 8, at most 64.
    """
    width = _width(bits)
    words = np.ascontiguousarray(vector, dtype="<u8")
    return words.view(np.uint8).reshape(-1, 8)[:, :width].tobytes()


def unpack(content: bytes, values: int, bits: int) -> Vector:
    """The inverse of :func:`pack`.

    Raises:
        ValueError: not as many bytes as ``values`` values have.
    """
    width = _width(bits)
    if len(content) != values * width:
        raise ValueError(f"{len(content):,} bytes, expected {values * width:,}")
    words = np.zeros((values, 8), dtype=np.uint8)
    words[:, :width] = np.frombuffer(content, dtype=np.uint8).reshape(values, width)
    return words.view("<u8").reshape(values)


def centred(vector: Vector, bits: int) -> npt.NDArray[np.int64]:
    """The representatives modulo 2^bits in [-2^(bits-1), 2^(bits-1)), int64."""
    unused = np.uint64(64 - bits)
    return (vector << unused).view(np.int64) >> np.int64(unused)


def _width(bits: int) -> int:
    if bits % 8 or not 8 <= bits <= 64:
        raise ValueError(f"{bits} bits are no whole bytes of a 64-bit word")
    return bits // 8
