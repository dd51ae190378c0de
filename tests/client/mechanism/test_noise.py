"""The randomness of the DP mechanism: right distribution, never repeated, nothing of the total.

Statistical bounds on secure noise fail by chance with a probability below 10^-6 in all.
"""

from __future__ import annotations

import copy
import itertools
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from lorica.client.mechanism.noise import (
    GRID_BITS,
    DerivedNoise,
    NoiseSource,
    SecureNoise,
    SeededNoise,
    grid_spacing,
)
from lorica.client.mechanism.secure_random import CHUNK, aes_ctr, standard_normal

DRAWS = 1_000_000
STD = 0.7
SIGMAS = 6.5  # two-sided chance of a normal statistic beyond: 8e-11
TINY = 1e-9


def _sources() -> list[NoiseSource]:
    return [SecureNoise(), SeededNoise("test", 0)]


each_source = pytest.mark.parametrize("source", _sources(), ids=lambda source: source.kind)


@pytest.fixture(scope="module", params=["noisy sum", "draws"])
def secure_draws(request: pytest.FixtureRequest) -> np.ndarray:
    """10^6 standardised draws, by way of add_noise and of gaussian."""
    if request.param == "draws":
        noise = SecureNoise().gaussian((DRAWS,), STD)
    else:
        noise = SecureNoise().add_noise(torch.zeros(DRAWS), STD)
    return noise.double().numpy() / STD


def test_moments_are_the_standard_normals(secure_draws: np.ndarray) -> None:
    n = DRAWS
    assert abs(secure_draws.mean()) < SIGMAS / math.sqrt(n)
    assert abs(secure_draws.var() - 1) < SIGMAS * math.sqrt(2 / n)
    assert abs((secure_draws**3).mean()) < SIGMAS * math.sqrt(15 / n)
    assert abs((secure_draws**4).mean() - 3) < SIGMAS * math.sqrt(96 / n)


def test_distribution_agrees_with_scipys_normal(secure_draws: np.ndarray) -> None:
    assert stats.kstest(secure_draws, stats.norm.cdf, method="asymp").pvalue > TINY


def test_tails_hold_as_many_draws_as_they_should(secure_draws: np.ndarray) -> None:
    for sigmas in (1, 2, 3, 4, 5):
        for side in (1, -1):
            # The middle between two grid points, so that rounding moves nothing across.
            edge = (math.floor(sigmas * STD / grid_spacing(STD)) + 0.5) * grid_spacing(STD) / STD
            count = int((side * secure_draws > edge).sum())
            expected = stats.binom(DRAWS, stats.norm.sf(edge))
            assert expected.sf(count - 1) > TINY
            assert expected.cdf(count) > TINY


def test_successive_draws_are_uncorrelated(secure_draws: np.ndarray) -> None:
    for values in (secure_draws, secure_draws**2 - 1):
        for lag in (1, 2, 3, 7, CHUNK):
            correlation = (values[lag:] * values[:-lag]).sum() / (values**2).sum()
            assert abs(correlation) < SIGMAS / math.sqrt(DRAWS)


@each_source
def test_calls_are_uncorrelated_with_each_other(source: NoiseSource) -> None:
    one, other = (source.gaussian((10**5,), 1.0).double() for _ in range(2))
    assert abs(float(one @ other)) < SIGMAS * math.sqrt(10**5)


def test_seeded_and_secure_noise_are_the_same_function_of_their_stream() -> None:
    """Any AES-CTR stream gives the same draws in both: only the key's origin differs."""
    key, counter = bytes(range(32)), bytes(16)

    class FixedSecure(SecureNoise):
        def _words(self, blocks: int) -> np.ndarray:
            return aes_ctr(key, counter, blocks)

    seeded = SeededNoise()
    seeded._key = key
    total = torch.linspace(-1, 1, 1000)
    assert torch.equal(FixedSecure().add_noise(total, STD), seeded.add_noise(total, STD))


def test_draws_agree_with_60_digit_arithmetic_out_to_13_sigma() -> None:
    """Reference: mpmath's normal CDF; the bound is the 2^-48 of the formal guarantee."""
    generator = np.random.default_rng(0)
    words = generator.integers(-(2**63), 2**63, size=(2, 400), dtype=np.int64)
    words[0] >>= np.arange(400) % 64  # ever smaller tails ...
    words[0, ::2] |= np.int64(-(2**63))  # ... on both sides
    words[0, 396:] = (0, -(2**63), 2**63 - 1, -1)  # the outermost, and the middle
    words[1, 396:] = (0, 0, -1, -1)
    draws = standard_normal(words.reshape(-1))
    with mpmath.workdps(60):
        for high, low, draw in zip(words[0].tolist(), words[1].tolist(), draws, strict=True):
            tail = (high % 2**63 + (low % 2**63 + mpmath.mpf(1) / 2) / 2**63) / mpmath.mpf(2) ** 64
            exact = mpmath.mpf(-abs(float(draw)))
            assert abs((mpmath.ncdf(exact) - tail) / mpmath.npdf(exact)) < 2.0**-48
            assert bool(np.signbit(draw)) == (high < 0)
    assert np.isfinite(draws).all()
    assert 13 < draws.max() < 13.1 and -13.1 < draws.min() < -13


@pytest.mark.parametrize("std", [STD, 1.0, 1e-6, 37.5, 2.0**-100, 2.0**100])
def test_noisy_sums_lie_on_a_grid_of_the_std_alone(std: float) -> None:
    spacing = grid_spacing(std)
    assert math.frexp(spacing)[0] == 0.5
    assert 2.0 ** -(GRID_BITS + 1) < spacing / std <= 2.0**-GRID_BITS
    for total in (torch.zeros(1000), torch.randn(1000) * std, torch.full((1000,), std / 3)):
        for source in _sources():
            steps = source.add_noise(total, std).double() / spacing
            assert torch.equal(steps, steps.round())


def test_plain_addition_would_leave_the_grid() -> None:
    """The control: low bits of the total survive in total + gaussian, not in add_noise."""
    total = torch.full((1000,), STD / 3)
    steps = (total + SecureNoise().gaussian((1000,), STD)).double() / grid_spacing(STD)
    assert not torch.equal(steps, steps.round())


@each_source
def test_a_zero_never_betrays_the_totals_sign(source: NoiseSource) -> None:
    for total in (0.0, -0.0, -1e-9, 1e-9):
        noisy = source.add_noise(torch.full((200_000,), total), STD)
        zeros = noisy[noisy == 0]
        assert len(zeros) > 0
        assert not torch.signbit(zeros).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-5, 1.0, 1e6])
def test_noisy_sum_is_the_exact_sum_rounded_whatever_the_totals_size(
    dtype: torch.dtype, scale: float
) -> None:
    """Reference: rational arithmetic on the same draws."""
    total = torch.linspace(-scale, scale, 501, dtype=dtype) + scale / 7
    noisy = SeededNoise("exact").add_noise(total, STD)
    source = SeededNoise("exact")
    draws = standard_normal(source._words(501))
    spacing = Fraction(grid_spacing(STD))
    for value, draw, result in zip(total.tolist(), draws.tolist(), noisy.tolist(), strict=True):
        steps = (Fraction(value) + Fraction(STD) * Fraction(draw)) / spacing
        exact = float(round(steps) * spacing)
        assert result == float(torch.tensor(exact, dtype=torch.float32))


def test_a_large_total_costs_the_noise_no_precision() -> None:
    """Totals 2^23 grid steps from 0 whose noisy sums fall within 2^-29 of a step from a tie.

    Reference: rational arithmetic. Adding in float64 first gets about a quarter of them wrong.
    """
    spacing = Fraction(grid_spacing(STD))
    noise = [Fraction(STD) * Fraction(z) for z in standard_normal(SeededNoise(1)._words(400))]
    totals = []
    for draw in noise:
        to_tie = Fraction(1, 2) - draw / spacing % 1
        totals.append(float((2**23 + Fraction(round(to_tie * 2**29), 2**29)) * spacing))
    noisy = SeededNoise(1).add_noise(torch.tensor(totals, dtype=torch.float64), STD)
    for total, draw, result in zip(totals, noise, noisy.tolist(), strict=True):
        assert result == float(round((Fraction(total) + draw) / spacing) * spacing)


def test_noisy_sum_has_the_totals_mean_and_the_stds_variance() -> None:
    noisy = SecureNoise().add_noise(torch.full((DRAWS,), 12.3456), STD).double() - 12.3456
    assert abs(float(noisy.mean())) < SIGMAS * STD / math.sqrt(DRAWS) + 1e-6
    assert abs(float(noisy.var()) / STD**2 - 1) < SIGMAS * math.sqrt(2 / DRAWS)


@each_source
def test_totals_are_left_as_they_were(source: NoiseSource) -> None:
    total = torch.nn.Parameter(torch.ones(5, 3))
    noisy = source.add_noise(total, STD)
    assert torch.equal(total, torch.ones(5, 3))
    assert not noisy.requires_grad
    assert noisy.dtype == torch.float32


@each_source
def test_a_transposed_total_keeps_its_places(source: NoiseSource) -> None:
    total = (torch.arange(12.0).reshape(3, 4) * 1e6).T
    assert torch.allclose(source.add_noise(total, STD), total, atol=14 * STD)


@each_source
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3, 4), torch.Size([5, 2])])
def test_shapes_are_kept(source: NoiseSource, shape: tuple[int, ...]) -> None:
    for noise in (source.gaussian(shape, STD), source.add_noise(torch.zeros(shape), STD)):
        assert noise.shape == torch.Size(shape)
        assert noise.dtype == torch.float32
        assert noise.device.type == "cpu"


@each_source
def test_no_std_is_no_noise(source: NoiseSource) -> None:
    total = torch.randn(100)
    assert torch.equal(source.gaussian((100,), 0.0), torch.zeros(100))
    same = source.add_noise(total, 0.0)
    assert torch.equal(same, total)
    assert same.data_ptr() != total.data_ptr()


@each_source
@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf, -math.inf, 1e-40, 1e40])
def test_impossible_stds_are_refused(source: NoiseSource, std: float) -> None:
    with pytest.raises(ValueError, match="std"):
        source.gaussian((2,), std)
    with pytest.raises(ValueError, match="std"):
        source.add_noise(torch.zeros(2), std)
    with pytest.raises(ValueError, match="std"):
        grid_spacing(std)


def test_there_is_no_grid_without_noise() -> None:
    with pytest.raises(ValueError, match="above 0"):
        grid_spacing(0.0)


@each_source
def test_unfit_totals_are_refused(source: NoiseSource) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="finite"):
            source.add_noise(torch.tensor([0.0, bad]), STD)
    with pytest.raises(ValueError, match="finite"):
        source.add_noise(torch.tensor([1e308], dtype=torch.float64), STD)
    for dtype in (torch.bfloat16, torch.float16, torch.int64):
        with pytest.raises(TypeError, match="float32 or float64"):
            source.add_noise(torch.zeros(2, dtype=dtype), STD)


@each_source
@pytest.mark.parametrize("rate", [1e-4, 0.1, 0.5, 0.97])
def test_mask_holds_units_at_the_rate(source: NoiseSource, rate: float) -> None:
    count = 300_001
    mask = source.poisson_mask(count, rate)
    assert mask.shape == (count,) and mask.dtype == torch.bool
    expected = stats.binom(count, rate)
    hits = int(mask.sum())
    assert expected.sf(hits - 1) > TINY and expected.cdf(hits) > TINY
    # Independence: pairs of neighbours are both in at rate², within disjoint pairs.
    both = int((mask[:-1:2] & mask[1::2]).sum())
    pairs = stats.binom(count // 2, rate**2)
    assert pairs.sf(both - 1) > TINY and pairs.cdf(both) > TINY


@each_source
def test_masks_of_certain_rates(source: NoiseSource) -> None:
    assert source.poisson_mask(100_000, 1.0).all()
    assert not source.poisson_mask(100_000, 0.0).any()
    assert source.poisson_mask(0, 0.5).shape == (0,)
    assert source.poisson_mask(1, 0.5).shape == (1,)


@each_source
@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan, math.inf, -1e-300, 1 + 2.0**-52])
def test_impossible_rates_are_refused(source: NoiseSource, rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        source.poisson_mask(3, rate)


@each_source
def test_negative_counts_are_refused(source: NoiseSource) -> None:
    with pytest.raises(ValueError, match="units"):
        source.poisson_mask(-1, 0.5)


@pytest.mark.parametrize("rate", [2.0**-64, 1e-17, 0.1, 0.5, 1 / 3, 1 - 2.0**-53])
def test_mask_is_exact_to_64_bits(rate: float) -> None:
    """Of the 2^64 equally likely words, exactly floor(rate · 2^64) put a unit in."""
    threshold = math.floor(Fraction(rate) * 2**64)
    words = np.array([0, threshold - 1, threshold, 2**64 - 1], dtype=np.uint64).view(np.int64)

    class Given(SecureNoise):
        def _words(self, blocks: int) -> np.ndarray:
            assert blocks == 2
            return words

    assert Given().poisson_mask(4, rate).tolist() == [True, True, False, False]


def _all_distinct(rows: list[bytes]) -> bool:
    return len(set(rows)) == len(rows)


def _sample(source: NoiseSource) -> bytes:
    return source.gaussian((8,), 1.0).numpy().tobytes()


def test_secure_copies_and_pickles_never_repeat() -> None:
    source = SecureNoise()
    twins = [
        source,
        copy.copy(source),
        copy.deepcopy(source),
        pickle.loads(pickle.dumps(source)),
        SecureNoise(),
    ]
    assert _all_distinct([_sample(twin) for twin in twins * 3])


def test_secure_threads_never_repeat() -> None:
    source = SecureNoise()
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda _: _sample(source), range(800)))
    assert _all_distinct(rows)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_secure_forks_never_repeat() -> None:
    source = SecureNoise()
    rows = [_sample(source)]
    for _ in range(3):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:  # no assertion, no cleanup of the parent's: write and vanish
            try:
                os.write(writing, _sample(source) + _sample(source))
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            sent = pipe.read()
        os.waitpid(child, 0)
        assert len(sent) == 64
        rows += [sent[:32], sent[32:], _sample(source)]
    assert _all_distinct(rows)


@pytest.mark.process
def test_secure_spawned_processes_and_restarts_never_repeat() -> None:
    source = SecureNoise()
    with multiprocessing.get_context("spawn").Pool(2) as pool:  # pickles the source, too
        rows = [
            noise.numpy().tobytes() for noise in pool.starmap(source.gaussian, [((8,), 1.0)] * 6)
        ]
    program = (
        "from lorica.client.mechanism.noise import SecureNoise;"
        "print(SecureNoise().gaussian((8,), 1.0).numpy().tobytes().hex())"
    )
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        rows.append(bytes.fromhex(result.stdout))
    assert _all_distinct([*rows, _sample(source)])


def test_no_secure_key_serves_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    system, given = os.urandom, []

    def recorded(size: int) -> bytes:
        given.append(system(size))
        return given[-1]

    monkeypatch.setattr(os, "urandom", recorded)
    source = SecureNoise()
    source.add_noise(torch.zeros(2 * CHUNK + 1), STD)
    source.gaussian((CHUNK + 1,), STD)
    source.poisson_mask(CHUNK + 1, 0.5)
    keys, counters = given[::2], given[1::2]
    assert [len(key) for key in keys] == [32] * 7
    assert [len(counter) for counter in counters] == [16] * 7
    assert _all_distinct(keys) and _all_distinct(counters)


KEY = (7, "site-a", 3, "noise")


def test_seeded_noise_is_reproducible() -> None:
    one, other = SeededNoise(*KEY), SeededNoise(*KEY)
    for _ in range(2):
        assert torch.equal(one.gaussian((40_000,), STD), other.gaussian((40_000,), STD))
        assert torch.equal(one.poisson_mask(999, 0.3), other.poisson_mask(999, 0.3))
        total = torch.randn(999)
        assert torch.equal(one.add_noise(total, STD), other.add_noise(total, STD))


def test_seeded_noise_is_the_same_as_ever() -> None:
    """Known answers, from AES-ECB on counters and mpmath: a change changes every simulation."""
    source = SeededNoise(*KEY)
    steps = source.add_noise(torch.zeros(6), 1.0) * 2**GRID_BITS
    assert steps.tolist() == [-329, -435, 786, 428, 1143, 239]
    assert source.poisson_mask(12, 0.5).int().tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1]


def test_seeded_calls_do_not_repeat_each_other() -> None:
    source = SeededNoise(*KEY)
    assert _all_distinct([_sample(source) for _ in range(100)])


@pytest.mark.parametrize(
    "other",
    [
        (8, *KEY[1:]),
        (7, "site-b", 3, "noise"),
        (7, "site-a", 4, "noise"),
        (7, "site-a", 3, "batches"),
        KEY[:3],
        (*KEY, ""),
        ("7", *KEY[1:]),
        (7 + 2**32, *KEY[1:]),
        (7 + 2**64, *KEY[1:]),
        (-7, *KEY[1:]),
        (),
    ],
)
def test_seeded_noise_differs_by_every_component(other: tuple[int | str, ...]) -> None:
    assert _sample(SeededNoise(*KEY)) != _sample(SeededNoise(*other))


def test_borders_of_a_seeded_key_count() -> None:
    keys: list[tuple[int | str, ...]] = [
        ("a", "bc"),
        ("ab", "c"),
        ("abc",),
        ('a", "bc',),
        ("a,bc",),
        (1, 23),
        (12, 3),
        (123,),
    ]
    for one, other in itertools.combinations(keys, 2):
        assert _sample(SeededNoise(*one)) != _sample(SeededNoise(*other))


@pytest.mark.parametrize("part", [1.5, True, None, b"a", np.int64(3)])
def test_seeded_keys_of_other_types_are_refused(part: object) -> None:
    with pytest.raises(TypeError, match="int and str"):
        SeededNoise("site", part)  # type: ignore[arg-type]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_seeded_copy_continues_where_its_original_stood(clone) -> None:  # type: ignore[no-untyped-def]
    source = SeededNoise(*KEY)
    first = _sample(source)
    twin = clone(source)
    assert _sample(twin) == _sample(source) != first


def test_sources_say_what_they_are() -> None:
    assert [source.kind for source in _sources()] == ["secure", "seeded"]


def test_noise_of_a_request_repeats_for_it_and_for_no_other_and_for_no_other_total() -> None:
    secret, total = bytes(range(32)), torch.arange(50, dtype=torch.float32)

    def draw(*request: int | str, total: torch.Tensor = total, std: float = 2.0) -> torch.Tensor:
        return DerivedNoise(secret, *request).add_noise(total, std) - total

    before = draw("run", 1, "train")
    assert torch.equal(before, draw("run", 1, "train"))
    changed = total.clone()
    changed[7] = torch.nextafter(changed[7], torch.tensor(9e9))  # by one bit
    others = [
        draw("run", 2, "train"),
        draw("other", 1, "train"),
        draw("run", 1, "train", total=changed),
        draw("run", 1, "train", std=2.0000001),
        DerivedNoise(bytes(32), "run", 1, "train").add_noise(total, 2.0) - total,
    ]
    for other in others:
        assert (before - other).abs().min() < (before - other).abs().max()
        assert (before != other).float().mean() > 0.9


def test_two_empty_batches_of_one_request_get_different_noise() -> None:
    source = DerivedNoise(bytes(32), "run", 1)
    zeros = torch.zeros(100)
    assert not torch.equal(source.add_noise(zeros, 1.0), source.add_noise(zeros, 1.0))
    assert not torch.equal(source.poisson_mask(100, 0.5), source.poisson_mask(100, 0.5))


def test_noise_of_requests_is_gaussian() -> None:
    """Over requests, as an observer sees it: Kolmogorov and Smirnov against the normal."""
    draws = torch.cat(
        [DerivedNoise(bytes(32), "run", n).add_noise(torch.zeros(200), 3.0) for n in range(100)]
    )
    assert stats.kstest(draws.numpy() / 3.0, "norm").pvalue > 1e-3


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        DerivedNoise(b"short", "run")
