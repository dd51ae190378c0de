"""The DP-SGD step: bounded sensitivity, exact sums, calibrated noise, Poisson batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from lorica.client.mechanism.dp_sgd import DPTrainer, NoisyOptimizer
from lorica.client.mechanism.noise import NoiseSource, SecureNoise, SeededNoise
from lorica.client.mechanism.per_sample import enable_per_sample_gradients
from lorica.client.mechanism.units import Units
from lorica.common.cache.batching import TOKEN_BUDGET, Batch
from lorica.common.errors import Code, LoricaError

SHAPES = [(3, 4), (5,), (2, 1)]
GROUPS = ([0, 1], [2])  # the shapes that are clipped together
VALUES = sum(math.prod(shape) for shape in SHAPES)
GROUP_OF_VALUE = np.repeat([0, 0, 1], [math.prod(shape) for shape in SHAPES])
TINY = 1e-9  # chance of a statistical test to fail on right code; the sum stays below 1e-6

Samples = list[torch.Tensor]
"""Per-record gradients, one tensor (n, *shape) for every shape."""

Bounds = tuple[float, float]
"""Clip norms of the two groups."""


def make_optimizer(
    *groups: tuple[Sequence[nn.Parameter], float],
    sigma: float = 0.0,
    batch: int = 1,
    rate: float = 1.0,
    noise: NoiseSource | None = None,
) -> NoisyOptimizer:
    """Plain gradient descent on groups of parameters, each with its clip norm."""
    held = [{"params": list(parameters), "clip_norm": bound} for parameters, bound in groups]
    return NoisyOptimizer(
        torch.optim.SGD(held, lr=rate),
        noise=noise or SeededNoise("dp-sgd"),
        noise_multiplier=sigma,
        expected_batch_size=batch,
    )


def two_groups(
    samples: Samples, bounds: Bounds, sigma: float = 0.0
) -> tuple[list[nn.Parameter], NoisyOptimizer]:
    """Parameters of SHAPES with these per-record gradients, in GROUPS."""
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    for parameter, sample in zip(parameters, samples, strict=True):
        parameter.grad_sample = sample
    groups = [
        ([parameters[i] for i in members], bound)
        for members, bound in zip(GROUPS, bounds, strict=True)
    ]
    return parameters, make_optimizer(*groups, sigma=sigma)


def clipped_sum(samples: Samples, bounds: Bounds) -> list[torch.Tensor]:
    """What the optimizer sums up for these gradients."""
    parameters, optimizer = two_groups(samples, bounds)
    optimizer.clip_and_accumulate()
    return [parameter.summed_grad for parameter in parameters]


def clipped(row: np.ndarray, bound: float) -> np.ndarray:
    """One gradient scaled to at most ``bound``, in float64."""
    norm = np.sqrt((row**2).sum())
    return row * min(1.0, bound / norm) if norm > 0 else row


def reference_sum(rows: np.ndarray, bounds: Bounds) -> np.ndarray:
    """The clipped sum by a loop over records in float64; not finite counts as 0."""
    total = np.zeros(rows.shape[1])
    for row in rows.astype(np.float64):
        if np.isfinite(row).all():
            for group, bound in enumerate(bounds):
                total[group == GROUP_OF_VALUE] += clipped(row[group == GROUP_OF_VALUE], bound)
    return total


def split(rows: np.ndarray) -> Samples:
    """(n, VALUES) as one tensor for every shape."""
    ends = np.cumsum([math.prod(shape) for shape in SHAPES])[:-1]
    parts = np.split(rows, ends, axis=1)
    pairs = zip(parts, SHAPES, strict=True)
    return [torch.from_numpy(part.copy()).reshape(len(part), *shape) for part, shape in pairs]


def joined(parts: Sequence[torch.Tensor]) -> np.ndarray:
    return np.concatenate([part.double().reshape(-1).numpy() for part in parts])


@st.composite
def gradients(draw: st.DrawFn) -> np.ndarray:
    """0 to 8 records' gradients, float32 (n, VALUES), some of them extreme."""
    count = draw(st.integers(0, 8))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = generator.standard_normal((count, VALUES)).astype(np.float32)
    for row in range(count):
        rows[row] *= np.float32(10.0 ** draw(st.integers(-40, 37)))
        kind = draw(st.sampled_from(["as is", "as is", "zero", "nan", "inf", "-inf", "huge"]))
        if kind == "zero":
            rows[row] = 0
        elif kind == "huge":
            rows[row] = np.copysign(np.finfo(np.float32).max, rows[row])
        elif kind != "as is":
            rows[row, draw(st.integers(0, VALUES - 1))] = float(kind)
    return rows


bounds_of_groups = st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))


@settings(max_examples=300, deadline=None)
@given(rows=gradients(), bounds=bounds_of_groups, data=st.data())
def test_one_record_moves_the_sum_by_at_most_the_clip_norm(
    rows: np.ndarray, bounds: Bounds, data: st.DataObject
) -> None:
    """Sensitivity under adding or removing any one record, whatever its gradient."""
    if not len(rows):
        assert not joined(clipped_sum(split(rows), bounds)).any()
        return
    removed = data.draw(st.integers(0, len(rows) - 1))
    with_it = joined(clipped_sum(split(rows), bounds))
    without_it = joined(clipped_sum(split(np.delete(rows, removed, axis=0)), bounds))
    assert np.isfinite(with_it).all()
    # The slack is the float64 rounding of a sum of at most 8 vectors of norm C.
    clip_norm = two_groups(split(rows), bounds)[1].max_grad_norm
    assert clip_norm == pytest.approx(math.hypot(*bounds), rel=1e-12)
    assert np.linalg.norm(with_it - without_it) <= clip_norm * (1 + 1e-14)


@settings(max_examples=200, deadline=None)
@given(rows=gradients(), bounds=bounds_of_groups)
def test_the_sum_is_that_of_the_clipped_records(rows: np.ndarray, bounds: Bounds) -> None:
    """Against a loop over records in float64."""
    difference = joined(clipped_sum(split(rows), bounds)) - reference_sum(rows, bounds)
    for group, bound in enumerate(bounds):
        assert np.linalg.norm(difference[group == GROUP_OF_VALUE]) <= 1e-6 * bound


class Regression:
    """A linear model on random records, whose gradients a loop can repeat."""

    def __init__(self, records: int, *, width: int = 6, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(records, width, generator=generator) * 3
        self.y = torch.randn(records, 2, generator=generator)
        self.model = nn.Linear(width, 2)
        with torch.no_grad():
            self.model.weight.copy_(torch.randn(2, width, generator=generator))
            self.model.bias.zero_()
        enable_per_sample_gradients(self.model, self.model.parameters())
        self.seen: list[np.ndarray] = []

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def loss(self, batch: Batch) -> torch.Tensor:
        self.seen.append(batch.rows[: batch.real])
        chosen = torch.from_numpy(batch.rows)
        return 0.5 * (self.model(self.x[chosen]) - self.y[chosen]).square().sum()

    def gradients(self) -> np.ndarray:
        """Every record's gradient in closed form, (n, values), float64."""
        weight = self.model.weight.detach().double()
        errors = self.x.double() @ weight.T + self.model.bias.detach().double() - self.y
        outer = errors[:, :, None] * self.x.double()[:, None, :]
        return torch.cat([outer.flatten(1), errors], dim=1).numpy()

    def trainer(
        self,
        *,
        rate: float = 1.0,
        length: int = 1,
        noise: NoiseSource | None = None,
        optimizer: NoisyOptimizer | None = None,
        loss: Callable[[Batch], torch.Tensor] | None = None,
        units: Units | None = None,
        sigma: float = 0.0,
        clip_norm: float = 1.0,
        batch: int = 1,
    ) -> DPTrainer:
        """A trainer; ``length`` is every record's number of tokens."""
        noise = noise or SeededNoise("regression")
        held = list(self.model.parameters())
        return DPTrainer(
            self.parameters,
            optimizer or make_optimizer((held, clip_norm), noise=noise, sigma=sigma, batch=batch),
            loss or self.loss,
            np.full((len(self.x), 1), length),
            10**7,
            sample_rate=rate,
            noise=noise,
            units=units,
        )

    def clipped_sum(self, clip_norm: float) -> np.ndarray:
        """The step's gradient sum by a loop over records, float64."""
        return np.sum([clipped(row, clip_norm) for row in self.gradients()], axis=0)

    def values(self) -> np.ndarray:
        return joined([parameter.detach() for parameter in self.model.parameters()])


@pytest.mark.parametrize(
    ("length", "batches"), [(1, 1), (TOKEN_BUDGET // 8, 2), (TOKEN_BUDGET, 12), (10**6, 12)]
)
def test_micro_batches_do_not_change_the_step(length: int, batches: int) -> None:
    """12 records in 1, 2 or 12 micro-batches, against a float64 loop over records."""
    problem = Regression(12)
    before = problem.values()
    expected = problem.clipped_sum(2.0)
    assert not np.allclose(expected, problem.gradients().sum(0)), "clipping should matter"
    problem.trainer(length=length, clip_norm=2.0, batch=12).run(1)
    assert len(problem.seen) == batches
    step = (before - problem.values()) * 12
    assert np.linalg.norm(step - expected) < 1e-6 * np.linalg.norm(expected)


def test_micro_batches_of_one_step_never_reach_the_next() -> None:
    """Two steps of several micro-batches, against the loop done twice."""
    problem, reference = Regression(7), Regression(7)
    problem.trainer(length=TOKEN_BUDGET // 2, batch=7).run(2)
    values = reference.values()
    for _ in range(2):
        values = values - reference.clipped_sum(1.0) / 7
        with torch.no_grad():
            reference.model.weight.copy_(torch.from_numpy(values[:12]).reshape(2, 6))
            reference.model.bias.copy_(torch.from_numpy(values[12:]))
    assert problem.values() == pytest.approx(values, rel=1e-5)


def test_gradients_are_divided_by_the_expected_batch_size() -> None:
    """10 records drawn, 4 expected: the divisor is 4, since 10 is private."""
    problem = Regression(10)
    before, expected = problem.values(), problem.clipped_sum(1.0)
    problem.trainer(batch=4).run(1)
    assert (before - problem.values()) * 4 == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_without_noise_the_gradient_is_exactly_the_clipped_mean() -> None:
    """To the bit, against the float64 sum rounded once to float32."""
    rows = np.random.default_rng(1).standard_normal((6, VALUES)).astype(np.float32)
    parameters, optimizer = two_groups(split(rows), (1.5, 0.1))
    optimizer.step()
    for parameter, total in zip(parameters, clipped_sum(split(rows), (1.5, 0.1)), strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, total.float())


def test_groups_are_clipped_apart_but_share_the_noise() -> None:
    """Noise of σ·√(C₁² + C₂²) on both groups, by a χ² test on 10,000 draws each."""
    parameters = [nn.Parameter(torch.zeros(100, 100)) for _ in range(2)]
    groups = [(parameters[:1], 0.3), (parameters[1:], 0.4)]
    optimizer = make_optimizer(*groups, sigma=2.0, noise=SecureNoise())
    for parameter in parameters:
        parameter.grad_sample = torch.zeros(0, 100, 100)
    optimizer.step()
    for parameter in parameters:
        assert parameter.grad is not None
        draws = parameter.grad.double() / (2.0 * 0.5)
        assert TINY < stats.chi2(draws.numel()).cdf(float(draws.square().sum())) < 1 - TINY


@pytest.mark.parametrize("records", [0, 5])
def test_an_empty_batch_takes_a_step_of_noise_alone(records: int) -> None:
    """Against the same seeded noise added to zeros; the loss is never computed."""
    problem = Regression(5)
    problem.x, problem.y = problem.x[:records], problem.y[:records]
    before = [parameter.detach().clone() for parameter in problem.model.parameters()]
    steps: list[int] = []
    trainer = problem.trainer(
        rate=0.0, sigma=2.0, clip_norm=0.5, batch=8, noise=SeededNoise("empty")
    )
    trainer.run(2, steps.append)
    assert problem.seen == []
    assert steps == [1, 2]
    same = SeededNoise("empty")
    for _ in range(2):
        same.poisson_mask(records, 0.0)
        for value in before:
            value -= same.add_noise(torch.zeros(value.shape, dtype=torch.float64), 1.0) / 8
    for value, parameter in zip(before, problem.model.parameters(), strict=True):
        assert torch.allclose(parameter.detach(), value, rtol=1e-6)
        assert value.abs().min() > 0


@pytest.mark.parametrize("units", [None, ["a", "a", "b"]])
def test_an_empty_batch_after_one_that_was_not_is_a_step_like_any_other(
    units: list[str] | None,
) -> None:
    """A step that fails is answered with a refusal, which nothing is charged for: it would tell
    that nobody was drawn. Of 60 steps about 13 are empty, and most follow one that is not."""
    problem = Regression(3)
    trainer = problem.trainer(
        rate=0.4,
        sigma=1.0,
        noise=SeededNoise("now and then"),
        units=None if units is None else Units(units, most=2),
    )
    trainer.run(60, (steps := []).append)
    assert len(steps) == 60
    assert 10 < len(problem.seen) < 55  # batches: some steps were empty, and some were not


@pytest.mark.parametrize("records", [0, 3])
@pytest.mark.parametrize(("sigma", "clip_norm", "batch"), [(1.3, 0.5, 32), (40.0, 2.0, 7)])
def test_the_noise_has_the_standard_deviation_of_the_guarantee(
    records: int, sigma: float, clip_norm: float, batch: int
) -> None:
    """σ·C / expected batch size, by an exact χ² test on 200,000 draws of secure noise."""
    parameter = nn.Parameter(torch.zeros(400, 500))
    optimizer = make_optimizer(
        ([parameter], clip_norm), sigma=sigma, batch=batch, noise=SecureNoise()
    )
    samples = torch.randn(records, 400, 500, generator=torch.Generator().manual_seed(0))
    parameter.grad_sample = samples
    optimizer.step()
    factors = (clip_norm / samples.flatten(1).double().norm(dim=1)).clamp(max=1)
    mean = torch.einsum("n,nij->ij", factors, samples.double()) / batch
    assert parameter.grad is not None
    noise = (parameter.grad.double() - mean).flatten().numpy() / (sigma * clip_norm / batch)
    law = stats.chi2(noise.size)
    assert TINY < law.cdf((noise**2).sum()) < 1 - TINY
    assert stats.kstest(noise, stats.norm.cdf, method="asymp").pvalue > TINY


def test_every_step_has_noise_of_its_own() -> None:
    problem = Regression(4)
    trainer = problem.trainer(rate=0.0, sigma=1.0)
    seen = [problem.values()]
    trainer.run(3, lambda _: seen.append(problem.values()))
    moves = np.diff(np.stack(seen), axis=0)
    assert len(np.unique(np.round(moves, 6))) == moves.size


def test_a_record_that_is_not_finite_counts_as_none() -> None:
    """Against a run without the record: same batch, same micro-batch."""
    broken, whole = Regression(6), Regression(6)
    broken.x[2, 0] = math.nan
    whole.x, whole.y = (torch.cat([t[:2], t[3:]]) for t in (whole.x, whole.y))
    broken.trainer(batch=3).run(1)
    whole.trainer(batch=3).run(1)
    assert np.isfinite(broken.values()).all()
    assert broken.values() == pytest.approx(whole.values(), rel=1e-6)


class Scripted(SeededNoise):
    """Noise whose batches are given."""

    def __init__(self, *batches: list[bool]) -> None:
        super().__init__("scripted")
        self._batches = list(batches)

    def poisson_mask(self, count: int, rate: float) -> torch.Tensor:
        return torch.tensor(self._batches.pop(0))


def frozen(trainer: DPTrainer, steps: int = 1) -> str:
    with pytest.raises(LoricaError) as caught:
        trainer.run(steps)
    assert caught.value.code is Code.PRIVACY_FROZEN
    return caught.value.detail


@pytest.mark.parametrize("rate", [0.0, 1e-30])
def test_a_step_that_moves_nothing_is_refused(rate: float) -> None:
    problem = Regression(3)
    optimizer = make_optimizer((list(problem.model.parameters()), 1.0), rate=rate)
    assert "weight" in frozen(problem.trainer(optimizer=optimizer))


def test_a_parameter_that_the_optimizer_lacks_is_refused() -> None:
    problem = Regression(3)
    optimizer = make_optimizer(([problem.model.weight], 1.0), sigma=1.0)
    assert "bias" in frozen(problem.trainer(optimizer=optimizer))


def test_an_empty_first_batch_does_not_use_up_the_check() -> None:
    """Without noise, which would have moved what can be moved."""
    problem = Regression(2)
    optimizer = make_optimizer((list(problem.model.parameters()), 1.0), rate=0.0)
    noise = Scripted([False, False], [True, True])
    trainer = problem.trainer(optimizer=optimizer, noise=noise)
    trainer.run(1)
    assert "weight" in frozen(trainer)


@pytest.mark.parametrize("rate", [0.0, 1e-30])
@pytest.mark.parametrize("batch", [[False, False], [True, False]])
def test_a_refusal_of_a_step_that_moves_nothing_does_not_tell_whether_its_batch_was_empty(
    rate: float, batch: list[bool]
) -> None:
    """Step sizes are the coordinator's: one too small to move anything asks for the answer."""
    problem = Regression(2)
    optimizer = make_optimizer((list(problem.model.parameters()), 1.0), sigma=1.0, rate=rate)
    assert "weight" in frozen(problem.trainer(optimizer=optimizer, noise=Scripted(batch)))


class Factors(nn.Module):
    """One pair of LoRA factors: A (2, 6), and B (2, 2) filled with ``b``."""

    def __init__(self, b: float) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.Linear(6, 2, bias=False), nn.Linear(2, 2, bias=False)
        nn.init.constant_(self.lora_B.weight, b)
        self.x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))

    def loss(self, batch: Batch) -> torch.Tensor:
        return (self.lora_B(self.lora_A(self.x[torch.from_numpy(batch.rows)])) - 1).square().sum()


def run_factors(b: float, held: str) -> None:
    """One step without noise, with an optimizer over the factors named ``held``."""
    model = Factors(b)
    enable_per_sample_gradients(model, model.parameters())
    parameters = {f"query.{name}": parameter for name, parameter in model.named_parameters()}
    moved = [parameter for name, parameter in parameters.items() if held in name]
    noise = SeededNoise("factors")
    DPTrainer(
        parameters,
        make_optimizer((moved, 1.0), noise=noise),
        model.loss,
        np.ones((4, 1), dtype=np.int64),
        1,
        sample_rate=1.0,
        noise=noise,
    ).run(1)


def test_an_a_whose_b_is_0_may_stay() -> None:
    """Its gradient is Bᵀ times something, so 0 before B has moved."""
    run_factors(0.0, held="lora_")


@pytest.mark.parametrize(("b", "held", "stays"), [(1.0, "lora_B", "A"), (0.0, "lora_A", "B")])
def test_a_factor_that_should_move_may_not_stay(b: float, held: str, stays: str) -> None:
    with pytest.raises(LoricaError) as caught:
        run_factors(b, held)
    assert caught.value.code is Code.PRIVACY_FROZEN
    assert f"lora_{stays}" in caught.value.detail


def test_a_model_that_mixes_records_into_one_axis_is_refused() -> None:
    """Tokens of all records in one axis would be taken for records."""
    problem = Regression(4)

    def flattened(batch: Batch) -> torch.Tensor:
        tokens = problem.x[torch.from_numpy(batch.rows)].reshape(-1, 3)
        return problem.model(torch.cat([tokens, tokens], dim=1)).sum()

    with pytest.raises(LoricaError) as caught:
        problem.trainer(loss=flattened).run(1)
    assert caught.value.code is Code.PRIVACY_UNSAFE_MODEL


def test_a_parameter_that_the_loss_does_not_reach_is_refused() -> None:
    problem = Regression(4)

    def beside(batch: Batch) -> torch.Tensor:
        return (problem.x[torch.from_numpy(batch.rows)] @ problem.model.weight.T).sum()

    with pytest.raises(LoricaError) as caught:
        problem.trainer(loss=beside).run(1)
    assert caught.value.code is Code.PRIVACY_UNSAFE_MODEL


@pytest.mark.parametrize("noise", [SecureNoise(), SeededNoise("rates")], ids=["secure", "seeded"])
def test_batches_are_poisson_draws_of_the_sample_rate(noise: NoiseSource) -> None:
    """Batch sizes and every record's count, by binomial tests on 400 steps of 500 records."""
    problem, steps, rate = Regression(500), 400, 0.06
    sizes: list[int] = []
    problem.trainer(rate=rate, noise=noise, sigma=1.0).run(
        steps, lambda step: sizes.append(sum(map(len, problem.seen)))
    )
    sizes = np.diff([0, *sizes]).tolist()
    counts = np.bincount(np.concatenate(problem.seen), minlength=500)
    law = stats.binom(500 * steps, rate)
    assert law.sf(sum(sizes) - 1) > TINY
    assert law.cdf(sum(sizes)) > TINY
    # Variances too: fixed batch sizes, or records drawn without independence, would show.
    for observed, trials in ((sizes, 500), (counts, steps)):
        spread = ((np.asarray(observed) - trials * rate) ** 2).sum()
        chi2 = stats.chi2(len(observed))
        assert TINY < chi2.cdf(spread / (trials * rate * (1 - rate))) < 1 - TINY


def test_a_unit_counts_once_however_many_records_it_has() -> None:
    """The clipped mean of each unit's records, against a float64 loop over units."""
    problem = Regression(9)
    owners = [0, 1, 1, 0, 2, 1, 3, 3, 3]
    units = Units([f"patient {owner}" for owner in owners], most=9)
    rows, before = problem.gradients(), problem.values()
    means = [rows[np.array(owners) == owner].mean(0) for owner in range(4)]
    bound = float(np.median([np.linalg.norm(mean) for mean in means]))  # half are clipped
    expected = np.sum([clipped(mean, bound) for mean in means], axis=0)
    problem.trainer(units=units, clip_norm=bound, batch=4, length=TOKEN_BUDGET // 4).run(1)
    assert len(problem.seen) > 1
    assert (before - problem.values()) * 4 == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_a_whole_unit_moves_the_step_by_at_most_the_clip_norm(most: int) -> None:
    """Without noise and with rate 1, with the patient of 8 records and without."""
    owners = ["one"] * 8 + [f"other {i}" for i in range(4)]
    both, rest = Regression(12), Regression(12)
    rest.x, rest.y = rest.x[8:], rest.y[8:]
    both.trainer(units=Units(owners, most=most), clip_norm=0.7).run(1)
    rest.trainer(units=Units(owners[8:], most=most), clip_norm=0.7).run(1)
    assert sum(map(len, both.seen)) == most + 4
    difference = np.linalg.norm(both.values() - rest.values())
    assert difference <= 0.7 * (1 + 1e-5)  # parameters are float32
    assert difference > 0.6, "a clipped unit moves it by nearly as much"
