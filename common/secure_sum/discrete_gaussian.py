"""Exact draws of the discrete Gaussian from a stream of uniform words, many at a time.

N_Z(0, s²) gives an integer x the probability exp(-x²/(2s²)) / Σ_y exp(-y²/(2s²)). Rejection from a
discrete Laplace distribution (Canonne, Kairouz and Steinke 2020, arXiv 2004.00010, algorithm 3)
needs two kinds of decision, both of the form "is this uniform number below that exponential":

- the Laplace magnitude X = ⌊-t·ln U⌋, for P(X >= x) = P(U <= exp(-x/t)), with t a power of two
  near s;
- acceptance with probability exp(-(X - s²/t)²/(2s²)).

Formal statement:
    *Exact.* A uniform number is a word of the stream and as many more words as are needed. Each
    decision is made in float64 where the number lies farther from the threshold than a bound on
    every rounding there is (logarithm, exponential, quotient, the word's own width: see the
    constants), and in decimal arithmetic of growing precision, with further words, where it does
    not. So every draw has exactly the distribution above, if the words are uniform; there is no
    statistical distance to account for.

    *Time.* How many candidates are needed says nothing of the values that are accepted: with
    rejection the two are independent. Which draws needed the exact arithmetic (about one in 2^30)
    can show in the time of a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Words = Callable[[int], npt.NDArray[np.uint64]]
"""count -> so many independent uniform 64-bit words, shape (count,)."""

MOST_VARIANCE = 2**54
"""Above, products of a candidate would not fit into 64 bits."""

_LOG_ERROR = 2.0**-46  # relative, of -ln(u): numpy's logarithm and conversion err by below 2^-49
_ACCEPT_ERROR = 2.0**-36  # relative, of exp(-γ) with γ below 2^14: at most γ·2^-50 + 2^-50
_WORD = 2.0**-62  # absolute: more than the width of 63 uniform bits
_DIGITS = 40  # of the first exact attempt


def discrete_gaussian(count: int, variance: int, words: Words) -> npt.NDArray[np.int64]:
    """``count`` independent draws of N_Z(0, ``variance``), shape (count,).

    Args:
        count: number of draws.
        variance: s², an integer in [1, :data:`MOST_VARIANCE`].
        words: the stream; every word is used once.

    Raises:
        ValueError: count or variance are out of range.
    """
    if count < 0 or not 1 <= variance <= MOST_VARIANCE:
        raise ValueError(f"no such draws: count={count}, variance={variance}")
    exponent = max(0, round(math.log2(variance) / 2))
    found = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        tried = int((count - done) * 1.6) + 16
        accepted = _candidates(tried, variance, exponent, words)[: count - done]
        found[done : done + len(accepted)] = accepted
        done += len(accepted)
    return found


def _candidates(tried: int, variance: int, exponent: int, words: Words) -> npt.NDArray[np.int64]:
    """Those of ``tried`` signed Laplace candidates that are accepted, in their order."""
    first, second = words(2 * tried).reshape(2, tried)
    magnitude = _laplace(first, exponent, words)
    negative = (second & np.uint64(1)).astype(bool)
    accepted = _accept(magnitude, second >> np.uint64(1), variance, exponent, words)
    accepted &= ~(negative & (magnitude == 0))  # or 0 would count twice
    return np.where(negative, -magnitude, magnitude)[accepted]


def _laplace(uniform: npt.NDArray[np.uint64], exponent: int, words: Words) -> npt.NDArray[np.int64]:
    """⌊-t·ln U⌋ for t = 2^exponent and U in [w, w + 1)/2^64."""
    scale = math.ldexp(1.0, exponent)
    low = uniform.astype(np.float64)
    with np.errstate(divide="ignore"):
        exact = (64 * math.log(2) - np.log(low + 0.5)) * scale
    error = _LOG_ERROR * (exact + scale) + scale / np.maximum(low, 0.5)
    found = np.floor(exact)
    unsure = np.flatnonzero((exact - found <= error) | (found + 1 - exact <= error))
    magnitude = found.astype(np.int64)
    for index in unsure.tolist():
        magnitude[index] = _exact_laplace(int(uniform[index]), exponent, words)
    return magnitude


def _accept(
    magnitude: npt.NDArray[np.int64],
    uniform: npt.NDArray[np.uint64],
    variance: int,
    exponent: int,
    words: Words,
) -> npt.NDArray[np.bool_]:
    """Whether U < exp(-(X·t - s²)²/(2s²t²)), for U in [w, w + 1)/2^63."""
    away = ((magnitude << exponent) - variance).astype(np.float64)
    away *= math.ldexp(1.0 / math.sqrt(2.0 * variance), -exponent)
    chance = np.exp(-away * away)
    drawn = uniform.astype(np.float64) * 2.0**-63
    accepted = drawn < chance
    unsure = np.flatnonzero(np.abs(drawn - chance) <= _ACCEPT_ERROR * chance + _WORD)
    for index in unsure.tolist():
        off = (int(magnitude[index]) << exponent) - variance
        power = Fraction(off * off, 2 * variance << 2 * exponent)
        accepted[index] = _Uniform(int(uniform[index]), 63, words).below_exp(power)
    return accepted


def _exact_laplace(word: int, exponent: int, words: Words) -> int:
    """The largest x with U <= exp(-x/t), decided exactly."""
    uniform = _Uniform(word, 64, words)
    scale = 1 << exponent
    found = max(0, math.floor((64 * math.log(2) - math.log(word + 0.5)) * scale) - 2)
    while found and not uniform.below_exp(Fraction(found, scale)):
        found = max(0, found - max(1, scale >> 30))
    while uniform.below_exp(Fraction(found + 1, scale)):
        found += 1
    return found


class _Uniform:
    """A uniform number in [0, 1), known to as many bits as were asked for."""

    def __init__(self, value: int, bits: int, words: Words) -> None:
        self._value, self._bits, self._words = value, bits, words

    def below_exp(self, power: Fraction) -> bool:
        """Whether the number is below exp(-power), for power >= 0."""
        if power == 0:
            return True
        digits = _DIGITS
        while True:
            low, high = _exp_bounds(power, digits)
            whole = 1 << self._bits
            if Fraction(self._value + 1, whole) <= low:
                return True
            if Fraction(self._value, whole) >= high:
                return False
            self._value = (self._value << 64) | int(self._words(1)[0])
            self._bits += 64
            digits += 20


def _exp_bounds(power: Fraction, digits: int) -> tuple[Fraction, Fraction]:
    """Below and above exp(-power), a relative 10^(8 - digits) apart or less for powers below 10^6
    (Decimal's exp is correctly rounded; the quotient before it errs by a relative 10^-digits)."""
    context = Context(prec=digits, Emin=-(10**6), Emax=10**6)
    quotient = context.divide(Decimal(power.numerator), Decimal(power.denominator))
    value = Fraction(context.exp(-quotient))
    margin = Fraction(1, 10 ** (digits - 8))
    return value * (1 - margin), value * (1 + margin)
