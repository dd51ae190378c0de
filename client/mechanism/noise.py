"""The randomness of the DP mechanism: Gaussian noise and Poisson batches.

:class:`DerivedNoise` is what real sites use, :class:`SecureNoise` what has no secret of its own,
:class:`SeededNoise` what simulations may use. All are the same arithmetic on an AES-256-CTR stream;
they differ only in where the key comes from.
So a simulation runs exactly the mechanism that a site runs.

What touches private sums is :meth:`NoiseSource.add_noise`, never ``total + gaussian(...)``.
Noise added in floating point leaves traces of the total in the low bits of the result, which can
tell neighbouring data sets apart with certainty (Mironov, CCS 2012; arXiv 2107.10138;
arXiv 2112.05307). ``add_noise`` adds in float64 and rounds the *sum* to a grid that depends on
std alone, so that no low bits leave; nor does the sign of a zero.

Formal guarantee:
    Neighbouring: one unit added or removed. Sensitivity: ``total`` moves by at most C in L2
    norm, which the caller ensures by clipping. Mechanism: add_noise of SecureNoise, and of
    DerivedNoise as said there.

    *Ideal*: round(total + Z) with Z ~ N(0, std²·I) over the reals, rounded to a grid fixed by
    std. That is post-processing of the Gaussian mechanism: it has exactly the privacy of
    noise multiplier std / C, with no charge for the grid, and so has every function of it (the
    conversion to float32, the optimizer, the update).

    *Real*: every draw that the code computes lies within 2^-36 grid steps of an exact Gaussian
    draw: ndtri errs by less than 2^-48 std (measured against 60-digit arithmetic, and tested; not
    proven), the uniform by a relative 2^-51, scaling and adding by 2^-38 and 2^-39 steps. The
    total is split exactly into a grid point and a remainder before anything is added, so its
    size adds no error. A grid cell's probability therefore differs from the ideal one by a
    factor within exp(±η), η = 2^-34, whatever the total. By advanced composition, n draws
    released over a run, adaptively, are (ε', δ')-indistinguishable from ideal ones with
    ε' = η·sqrt(2·n·ln(1/δ₀)) + n·η·(e^η - 1) and δ' = δ₀ + n·2^-74, the latter for draws so far
    out (beyond 9.7 std) that the uniform's lattice shows. A run accounted as (ε, δ) is
    (ε + 2ε', e^ε'·δ + (1 + e^(ε+ε'))·δ')-DP. For 60,000 parameters, 40 steps (n = 2.4·10^6) and
    δ₀ = 10^-20: ε' < 10^-6, and at ε = 8, δ = 10^-5 the δ grows by less than a millionth of
    itself. Lorica does not charge it.

    A unit enters a batch with probability ⌊rate·2^64⌋/2^64: never above rate, below it by less
    than 2^-64.

    All this holds against observers who cannot tell AES-256-CTR from random bits.

    Not covered: the sensitivity of a sum made in float32, where one record can change how the
    others round (arXiv 2207.10635); totals that are not finite, which are refused, visibly;
    the time that a step takes; whoever reads this process's memory; any release of
    ``total`` that does not pass through add_noise; :meth:`NoiseSource.gaussian` added to
    anything private; :class:`SeededNoise`, which is no privacy at all.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from lorica.client.mechanism.secure_random import BLOCK_BYTES, CHUNK, aes_ctr, standard_normal
from lorica.common.secure_sum.discrete_gaussian import discrete_gaussian

GRID_BITS = 10
"""The grid of noisy sums has at least 2^GRID_BITS steps per std. Rounding to it adds less than
10^-7 of the noise's variance."""

STD_RANGE = (2.0**-100, 2.0**100)
"""Least and greatest std other than 0: outside, float32 could not hold the noisy sum."""


class NoiseSource(Protocol):
    """Where a site's DP engine gets its randomness."""

    kind: Literal["secure", "seeded"]
    """"secure" is fit for private data, "seeded" for simulations only."""

    def add_noise(self, total: torch.Tensor, std: float) -> torch.Tensor:
        """``total`` plus N(0, std²) in every coordinate, on the grid: *the* private release.

        An empty batch releases ``add_noise(zeros, std)``, so that it looks like any other.

        Args:
            total: float32 or float64, any shape: the sum of clipped contributions.
            std: standard deviation, in the unit of ``total``; 0 adds nothing and is not private.

        Returns:
            float32, shape and device of ``total``; every value is a multiple of
            :func:`grid_spacing` (std), unless float32 itself is coarser there.

        Raises:
            TypeError: ``total`` is neither float32 nor float64.
            ValueError: std is out of range, or ``total`` has a value that is not finite.
        """
        ...

    def gaussian(self, shape: Sequence[int] | torch.Size, std: float) -> torch.Tensor:
        """Draws of N(0, std²) alone, to look at. Never add them to private values.

        They are deliberately not on the grid: a private total plus noise on a grid would show
        the total's remainder in the clear.

        Returns:
            float32 on the CPU, of the given shape; zeros when std is 0.

        Raises:
            ValueError: std is negative, not finite, or outside :data:`STD_RANGE` and not 0.
        """
        ...

    def discrete(self, count: int, variance: int) -> npt.NDArray[np.int64]:
        """Exact draws of the discrete Gaussian N_Z(0, variance), shape (count,)
        (:mod:`lorica.common.secure_sum.discrete_gaussian`).

        Raises:
            ValueError: count or variance are out of range.
        """
        ...

    def poisson_mask(self, count: int, rate: float) -> torch.Tensor:
        """Which of ``count`` units are in the batch, each independently with chance ``rate``.

        Returns:
            bool on the CPU, shape (count,).

        Raises:
            ValueError: count is negative or rate lies outside [0, 1].
        """
        ...


def grid_spacing(std: float) -> float:
    """Step of the grid that noisy sums lie on: a power of two in (2^-11, 2^-10]·std.

    Raises:
        ValueError: std is 0 (there is no grid without noise) or out of range.
    """
    if _checked(std) == 0:
        raise ValueError("There is no grid without noise: std must be above 0.")
    return math.ldexp(1.0, math.frexp(std)[1] - 1 - GRID_BITS)


class _AesNoise(ABC):
    """The mechanism of the module's docstring, on whatever AES-CTR stream a subclass gives."""

    @abstractmethod
    def _words(self, blocks: int) -> npt.NDArray[np.int64]:
        """The next ``blocks`` (at most :data:`CHUNK`) AES blocks as 2 · blocks words."""

    def add_noise(self, total: torch.Tensor, std: float) -> torch.Tensor:
        if total.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"Sum in float32 or float64 before adding noise, not in {total.dtype}.")
        values = total.detach().cpu().contiguous().numpy()
        with np.errstate(over="ignore"):
            noisy = values.astype(np.float32)
        if not np.isfinite(noisy).all():
            raise ValueError("The sum to be noised has a value that is not finite in float32.")
        if _checked(std) > 0:
            spacing = grid_spacing(std)
            flat = noisy.reshape(-1)
            source = values.reshape(-1)
            room = np.empty((2, min(flat.size, CHUNK)))  # numbers of a chunk, twice
            for part in _chunks(flat.size):
                # In units of the grid. `steps` and `rest` are exact, so a large total costs the
                # noise no precision.
                rest, steps = room[:, : source[part].size]
                np.divide(source[part], spacing, out=rest, dtype=np.float64)
                np.rint(rest, out=steps)
                rest -= steps
                draws = standard_normal(self._words(rest.size))
                draws *= std / spacing
                rest += draws
                np.rint(rest, out=rest)
                steps += rest
                steps += 0.0  # -0.0, which would betray the total's sign, becomes 0.0
                np.multiply(steps, spacing, out=flat[part], casting="same_kind")
        return torch.from_numpy(noisy).to(total.device)

    def gaussian(self, shape: Sequence[int] | torch.Size, std: float) -> torch.Tensor:
        draws = np.zeros(tuple(shape), dtype=np.float32)
        if _checked(std) > 0:
            flat = draws.reshape(-1)
            for part in _chunks(flat.size):
                flat[part] = standard_normal(self._words(flat[part].size)) * std
        return torch.from_numpy(draws)

    def discrete(self, count: int, variance: int) -> npt.NDArray[np.int64]:
        def words(wanted: int) -> npt.NDArray[np.uint64]:
            parts = [self._words(-(-part // 2))[:part] for part in _sizes(wanted, 2 * CHUNK)]
            return np.concatenate(parts).view(np.uint64)

        return discrete_gaussian(count, variance, words)

    def poisson_mask(self, count: int, rate: float) -> torch.Tensor:
        if count < 0:
            raise ValueError(f"The number of units must be at least 0, not {count}.")
        if not 0 <= rate <= 1:
            raise ValueError(f"The sample rate must lie in [0, 1], not {rate}.")
        if rate == 1:  # its threshold, 2^64, is no 64-bit number
            return torch.from_numpy(np.ones(count, dtype=np.bool_))
        threshold = np.uint64(int(math.ldexp(rate, 64)))
        mask = np.empty(count, dtype=np.bool_)
        for part in _chunks(count):
            size = mask[part].size
            mask[part] = self._words(-(-size // 2))[:size].view("<u8") < threshold
        return torch.from_numpy(mask)


class SecureNoise(_AesNoise):
    """Noise from AES-256-CTR under keys of the operating system: for private data.

    It holds no state. Every call takes a new key and a new first counter from ``os.urandom``, and
    others after every ``CHUNK`` blocks. So no stream can be repeated, by a forked child, a copy, a
    pickle, another thread, a restart or a restored snapshot of the machine; there is nothing to
    lock, and no counter can run out.
    """

    kind: Literal["secure", "seeded"] = "secure"

    def _words(self, blocks: int) -> npt.NDArray[np.int64]:
        return aes_ctr(os.urandom(32), os.urandom(BLOCK_BYTES), blocks)


class DerivedNoise(_AesNoise):
    """Noise that follows from a secret of the site and from what is asked: for private data.

    A ledger that is put back from a copy has forgotten replies. With noise of the moment, the same
    request would then get a second reply with other noise, and the mean of many has none. Here the
    second reply is the first, to the bit.

    Formal guarantee:
        Every call draws from AES-256-CTR under a key of its own,

            HMAC-SHA256(secret, (request, number of the call, what is drawn, H(total), std)),

        where H(total) is SHA-256 over the very numbers that the noise is added to. Against whoever
        does not hold the secret and cannot tell HMAC-SHA256 and AES from random functions:

        * calls that differ in any of these get independent noise. So different requests compose
          as with fresh noise, and *no two different totals ever share noise*: other records, code,
          models or rounding under the same request give independent noise, never a difference
          that is bare;
        * calls that are equal in all of these give equal results, which tell nothing new.

        For fixed records, each distinct request is thus the mechanism of :class:`SecureNoise`,
        and asking again, however often and after whatever was restored, is post-processing.

        *Batches* follow from secret, request and number of the call alone. Where records changed
        between two answers to one request (after a ledger was put back), the two share who is
        drawn: each is the sampled mechanism, their composition is bounded by that of unsampled
        steps. A ledger that is not put back answers a request once.

    *Beyond that*: whoever gets the secret can subtract the noise of replies that they have; with
    :class:`SecureNoise` nobody can. It lies beside the records, which are worth more.

    Args:
        secret: 32 bytes or more, the site's own.
        request: what is asked: everything that tells one request from another.

    Raises:
        ValueError: a secret of fewer than 32 bytes.
    """

    kind: Literal["secure", "seeded"] = "secure"

    def __init__(self, secret: bytes, *request: int | str) -> None:
        if len(secret) < 32:
            raise ValueError("A secret that noise is derived from has 32 bytes or more.")
        self._secret, self._request = secret, request
        self._calls = 0
        self._key = b""
        self._position = 0

    def add_noise(self, total: torch.Tensor, std: float) -> torch.Tensor:
        values = total.detach().cpu().contiguous().numpy()
        content = hashlib.sha256(values.tobytes()).hexdigest()
        self._begin("sum", str(total.dtype), str(tuple(total.shape)), float(std).hex(), content)
        return super().add_noise(total, std)

    def gaussian(self, shape: Sequence[int] | torch.Size, std: float) -> torch.Tensor:
        self._begin("gaussian", str(tuple(shape)), float(std).hex())
        return super().gaussian(shape, std)

    def poisson_mask(self, count: int, rate: float) -> torch.Tensor:
        self._begin("batch", str(count), float(rate).hex())
        return super().poisson_mask(count, rate)

    def _begin(self, *drawn: str) -> None:
        self._calls += 1
        words = ["lorica noise of a request", *self._request, self._calls, *drawn]
        self._key = hmac.digest(self._secret, json.dumps(words).encode(), "sha256")
        self._position = 0

    def _words(self, blocks: int) -> npt.NDArray[np.int64]:
        counter = self._position.to_bytes(BLOCK_BYTES)
        self._position += blocks
        return aes_ctr(self._key, counter, blocks)


@dataclass(frozen=True)
class RequestNoise:
    """The noise of a site's answers, each from its request."""

    secret: bytes = field(repr=False)
    """The site's own, 32 bytes or more."""

    def of(self, *request: int | str) -> DerivedNoise:
        """The noise of one answer; ``request``: all that tells its request from another."""
        return DerivedNoise(self.secret, *request)


class SeededNoise(_AesNoise):
    """The same noise on every machine for the same key: for simulations, not private.

    Two sources of equal key give equal results to equal calls in equal order. A copy continues
    from where its original stood. One source serves one thread.

    Args:
        key: what the stream is for, such as ``(seed, site, round, "noise")``. Types and borders
            count: 1 is not "1", and ("a", "bc") is not ("ab", "c"). It is hashed by SHA-256 to
            all 256 bits of the AES key. (torch's CPU generator would keep 32 of a seed's bits:
            among 20,000 keys two would coincide with probability 0.05.)

    Raises:
        TypeError: a component is neither int nor str.
    """

    kind: Literal["secure", "seeded"] = "seeded"

    def __init__(self, *key: int | str) -> None:
        for part in key:
            if type(part) not in (int, str):
                raise TypeError(f"A noise key is made of int and str, not {type(part).__name__}.")
        self._key = hashlib.sha256(json.dumps(["lorica noise", *key]).encode()).digest()
        self._position = 0

    def _words(self, blocks: int) -> npt.NDArray[np.int64]:
        counter = self._position.to_bytes(BLOCK_BYTES)
        self._position += blocks
        return aes_ctr(self._key, counter, blocks)


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, count, CHUNK))


def _sizes(count: int, most: int) -> Iterator[int]:
    """Sizes of the parts that ``count`` things are made in, at most ``most`` each."""
    return (min(most, count - start) for start in range(0, count, most))


def _checked(std: float) -> float:
    if not 0 <= std < math.inf:
        raise ValueError(f"The noise's std must be finite and at least 0, not {std}.")
    if std and not STD_RANGE[0] <= std <= STD_RANGE[1]:
        raise ValueError(f"The noise's std must be 0 or lie in [2^-100, 2^100], not {std}.")
    return std
