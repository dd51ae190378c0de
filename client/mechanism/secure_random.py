"""From AES-256-CTR to uniform words to standard normal draws.

The inverse CDF makes one draw of one uniform through a monotone function. So an error of the
arithmetic moves a draw by a known small distance, which is all that the proof in
:mod:`lorica.client.mechanism.noise` needs, and the number of steps is the same for every draw
(rejection loops gave the noise away by their time, arXiv 2112.05307). Box–Muller makes pairs, from
which noise has been reconstructed; the sum of several draws (arXiv 2107.10138, section 5.1) makes
that costly, which is no proof.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

CHUNK = 2**14
"""AES blocks (and draws) made at once, at most. Below 2^15 torch stays in the calling thread: a
forked child cannot hang in a thread pool that it did not inherit, and busy cores do not slow it."""

BLOCK_BYTES = 16
"""Bytes in an AES block and in a CTR counter."""

_ZEROS = bytes(BLOCK_BYTES * CHUNK)
_LOW_63_BITS = 2**63 - 1


def aes_ctr(key: bytes, counter: bytes, blocks: int) -> npt.NDArray[np.int64]:
    """The key stream of AES-CTR as uniform 64-bit words, shape (2 · blocks,).

    Args:
        key: 32 bytes.
        counter: the first block's counter, 16 bytes, big-endian.
        blocks: at most :data:`CHUNK`.
    """
    out = bytearray(BLOCK_BYTES * blocks + BLOCK_BYTES - 1)  # update_into asks for the slack
    zeros = memoryview(_ZEROS)[: BLOCK_BYTES * blocks]
    Cipher(AES(key), CTR(counter)).encryptor().update_into(zeros, out)
    return np.frombuffer(out, dtype="<i8", count=2 * blocks)


def standard_normal(words: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """N(0, 1) in float64 from two uniform words a draw: shape (2n,) to (n,), n < 2^15.

    A sign bit and 126 bits of the tail's probability, which lies in (0, 1/2] and keeps a relative
    precision of 2^-51 down to 2^-128: the tails are right out to 13 standard deviations. ndtri
    errs by less than 2^-48.
    """
    high, low = words.reshape(2, -1)
    bits = low & _LOW_63_BITS
    tail = bits * 2.0**-63
    tail += 2.0**-64
    np.bitwise_and(high, _LOW_63_BITS, out=bits)
    tail += bits
    tail *= 2.0**-64
    held = torch.from_numpy(tail)
    torch.special.ndtri(held, out=held)
    return np.copysign(tail, high, out=tail)
