"""DP-SGD at a site: Poisson batches, per-record clipping, Gaussian noise, one step at a time.

Opacus' ``DPOptimizer`` does the step (its virtual steps accumulate micro-batches); the
per-record gradients come from :mod:`lorica.client.mechanism.per_sample`, noise and sampling from a
:class:`lorica.client.mechanism.noise.NoiseSource`.

Formal guarantee:
    *Neighbouring relation*: two data sets are neighbours when one is the other with one unit
    added or removed (:mod:`lorica.client.mechanism.units`; a unit is a record unless the plan says
    otherwise). *Mechanism*: each step includes every unit independently with probability q (a
    function of public figures, not of the records), computes one gradient per unit in groups of
    parameters, g_i = (g_i1, …, g_iG), clips each group to its own bound,
    g_ij · min(1, C_j / ‖g_ij‖₂) with Σ C_j² = C², and releases their sum over the units plus
    N(0, σ²C² I). A unit with a gradient that is not finite contributes 0. *Sensitivity*: one
    unit's clipped gradient has L2 norm at most √(Σ C_j²) = C, so the sum changes by at most C
    between neighbours, so each step is the Poisson-subsampled Gaussian mechanism with
    noise multiplier σ and sample rate q; T steps compose to the ε that
    :func:`lorica.common.privacy.accountant.epsilon` states for ``PrivacyEvent(σ, q, T)``.
    Everything after the noise (Adam, several local steps, the returned update) is post-processing.
    The model must not couple records;
    :func:`~lorica.client.mechanism.per_sample.enable_per_sample_gradients` refuses layers that do.

    *Augmentation multiplicity* (De et al., arXiv 2204.13650): with K views of every record, g_i is
    the mean of the gradients at the K views (and over the unit's records), formed before it is
    clipped. It is still one vector per unit, clipped to C, so the sensitivity and ε are those of
    K = 1. Views of a record are drawn independently of all other records, from a distribution that
    depends on none of them: given the same views of the records that two neighbouring data sets
    share, the above holds, and the mean over the views is a mixture of such mechanisms.

    *Numbers.* All of the above holds for the numbers as they are computed, not only for those that
    they stand for, whatever the adapter that a coordinator sends:

    1. *A unit's clipped gradient is a function of that unit alone, to the bit*: forward and
       backward pass, its views, the mean over its records, norm and factor are computed in
       canonical shapes (:mod:`lorica.common.cache.batching`, tried out for the real model before
       a plan is served: :mod:`lorica.client.mechanism.exactness`), and no step of them adds over
       units. So an adapter that makes features of rounding and amplifies it changes every unit's
       own gradient, and no other's.
    2. *Its norm is at most C, and the sum is exact* (:mod:`lorica.client.mechanism.clipping`): so
       between neighbours the sum changes by exactly the one unit's clipped gradient, whatever the
       order of units, and ``add_noise`` (which rounds the noised sum to its own grid) is given
       numbers of which its proof holds.

    With σ = 0 nothing is private, and sums are not cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from opacus.optimizers import DPOptimizer

from lorica.client.mechanism.after_noise import AfterNoise
from lorica.client.mechanism.clipping import factors_of, row_norms, scaled_sum
from lorica.client.mechanism.noise import NoiseSource
from lorica.client.mechanism.units import Drawn, Units, sum_by_unit
from lorica.common.cache.batching import Batch, unit_batches
from lorica.common.errors import Code, LoricaError

Parameters = dict[str, torch.nn.Parameter]

LossOfBatch = Callable[[Batch], torch.Tensor]
"""Summed loss of all rows of a batch, those that count for nothing among them; its backward pass
fills ``grad_sample``. A row's view is ``turn`` modulo the number of views."""


class NoisyOptimizer(DPOptimizer):
    """Opacus' optimizer with noise from a :class:`NoiseSource` and hardened clipping."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise: NoiseSource,
        noise_multiplier: float,
        expected_batch_size: int,
        after: AfterNoise | None = None,
    ) -> None:
        """
        Args:
            optimizer: every parameter group has a key "clip_norm", its C_j.
            noise: source of the noise.
            noise_multiplier: σ; 0 means no privacy (gradients are clipped all the same).
            expected_batch_size: what the noised sum is divided by: a public constant (the drawn
                batch size is private).
            after: changes the noised mean gradients before they move anything.
        """
        bounds = [group["clip_norm"] for group in optimizer.param_groups]
        clip_norm = math.sqrt(sum(bound**2 for bound in bounds))
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction="mean",
        )
        self._noise = noise
        self.counted: torch.Tensor | None = None
        """Which rows of ``grad_sample`` are units, bool (R,); all, when None."""
        if after is not None:
            self.attach_step_hook(lambda _: after(self.params))

    def clip_and_accumulate(self) -> None:
        """Clip and sum what requires gradients (:mod:`lorica.client.mechanism.clipping`); a unit
        with any non-finite gradient counts as 0."""
        groups = []
        for group in self.param_groups:
            members = [(p, p.grad_sample.flatten(1)) for p in group["params"] if p.requires_grad]
            if members:
                norms = row_norms([sample for _, sample in members])
                groups.append((group["clip_norm"], members, norms))
        counts = torch.stack([norms for _, _, norms in groups]).isfinite().all(0)
        if self.counted is not None:
            counts &= self.counted
        exact = self.noise_multiplier > 0
        for bound, members, norms in groups:
            factors = torch.where(counts, factors_of(norms, bound, exact=exact), 0.0)
            for parameter, sample in members:
                total = scaled_sum(sample, factors, bound, exact=exact).reshape(parameter.shape)
                held = parameter.summed_grad
                parameter.summed_grad = total if held is None else held + total

    def add_noise(self) -> None:
        """``grad`` = clipped sum + N(0, (σC)²), drawn from the noise source."""
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            total = parameter.summed_grad
            parameter.grad = self._noise.add_noise(total, std).to(parameter.dtype)


class KeepGradient(torch.optim.Optimizer):
    """An inner optimizer that keeps the noised gradients and moves nothing."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        """``groups``: as for :class:`NoisyOptimizer`."""
        super().__init__(groups, {})
        self.kept: dict[torch.nn.Parameter, torch.Tensor] = {}
        """The last step's noised gradient of every parameter."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Keep the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.kept[parameter] = parameter.grad.detach().clone()


class DPTrainer:
    """Runs DP-SGD steps over one site's records for one round."""

    def __init__(
        self,
        parameters: Parameters,
        optimizer: NoisyOptimizer,
        loss_of_batch: LossOfBatch,
        sizes: np.ndarray,
        limit: int,
        *,
        sample_rate: float,
        noise: NoiseSource,
        units: Units | None = None,
        moves: bool = True,
        turns: Sequence[Collection[str]] = (),
        scales: Mapping[str, float] | None = None,
        views: int = 1,
    ) -> None:
        """
        Args:
            parameters: the trained parameters by name.
            optimizer: over exactly these parameters.
            loss_of_batch: summed loss of some rows.
            sizes: of every record, shape (N, d) (:class:`lorica.common.tasks.inputs.Inputs`).
            limit: the records' largest canonical length.
            sample_rate: q, from public figures only.
            noise: source of the Poisson sampling.
            units: whose records they are; every record its own unit when omitted.
            moves: whether the optimizer moves the parameters, which is then checked.
            turns: names of the parameters that each step trains: the first collection in the
                first step and so on, again from the first after the last; all, when empty.
                What a step does not train is neither clipped nor noised nor moved in it.
            scales: name -> what the gradients of a parameter are multiplied by before clipping;
                1 for names that are absent.
            views: K, how often each row is asked for in ``loss_of_batch``; the record's gradient is
                the mean over them.
        """
        self._parameters = parameters
        self._optimizer = optimizer
        self._loss_of_batch = loss_of_batch
        self._sizes, self._limit = sizes, limit
        self._sample_rate = sample_rate
        self._noise = noise
        self._units = units or Units.of_records(len(sizes))
        self._scales = scales or {}
        self._views = views
        self._averages = views > 1 or self._units.grouped
        self._begun: dict[str, torch.Tensor] = {}  # sums of a unit that goes on in the next batch
        self._count = 0  # of its rows
        self._turns = [set(names) for names in turns] or [set(parameters)]
        self._unchecked = set(range(len(self._turns))) if moves else set()

    def run(self, steps: int, on_step: Callable[[int], Any] | None = None) -> None:
        """Take ``steps`` DP-SGD steps; ``on_step`` hears the number of steps taken.

        Raises:
            LoricaError: LOR-404 when per-record gradients cannot be trusted, LOR-405 when a
                trainable matrix did not move in the first step.
        """
        for step in range(steps):
            drawn = self._units.draw(self._noise, self._sample_rate)
            self._step(drawn, step % len(self._turns))
            if on_step is not None:
                on_step(step + 1)
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)

    def _step(self, drawn: Drawn, turn: int) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        active = self._activate(turn)
        before = _copies(active) if turn in self._unchecked else None
        rows_of_units = [np.repeat(rows, self._views) for rows in drawn]
        batches = list(unit_batches(rows_of_units, self._sizes, self._limit))
        for position, batch in enumerate(batches):
            self._loss_of_batch(batch).backward()
            self._check_sizes(active, len(batch.rows))
            if not self._by_unit(active, batch):
                continue
            self._optimizer.signal_skip_step(position + 1 < len(batches))
            self._optimizer.step()
            if position + 1 < len(batches):
                self._optimizer.zero_grad(set_to_none=True)
        if not batches:
            self._empty_step(active)
        # Noise moves everything, also when nothing was drawn: that a batch is empty is not told by
        # whether the step is refused.
        if before is not None and (drawn or self._optimizer.noise_multiplier > 0):
            _assert_moved(before, active, self._parameters)
            self._unchecked.discard(turn)

    def _by_unit(self, active: Parameters, batch: Batch) -> bool:
        """Turn gradients per row into gradients per unit; False while a unit is not complete.

        Whether means are formed is decided by the plan, not by how many rows a unit brings: in
        float64 a gradient's norm can round otherwise.
        """
        owner = torch.from_numpy(batch.owner)
        self._optimizer.counted = owner >= 0
        for name, parameter in active.items():
            sample: torch.Tensor = parameter.grad_sample  # type: ignore[attr-defined]
            if name in self._scales:
                sample *= self._scales[name]
            if self._averages:
                sample = sum_by_unit(sample, owner)
                if name in self._begun:
                    sample[0] += self._begun[name]
            parameter.grad_sample = sample  # type: ignore[attr-defined]
        if not self._averages:
            return True
        self._count += int((owner == 0).sum())
        if batch.more:
            self._begun = {name: p.grad_sample[0] for name, p in active.items()}  # type: ignore[attr-defined]
            self._optimizer.zero_grad(set_to_none=True)
            return False
        count = torch.bincount(owner[owner >= 0], minlength=len(owner)).clamp(min=1)
        count[0], self._count, self._begun = self._count, 0, {}
        for parameter in active.values():
            sample = parameter.grad_sample  # type: ignore[attr-defined]
            sample /= count.reshape(-1, *[1] * (sample.dim() - 1))
        return True

    def _activate(self, turn: int) -> Parameters:
        """Make the turn's parameters, and no others, trainable; returns them."""
        names = self._turns[turn]
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in names)
        return {name: p for name, p in self._parameters.items() if name in names}

    def _empty_step(self, active: Parameters) -> None:
        """A step whose batch is empty: noise alone, accounted like any other."""
        self._optimizer.counted = None  # of the batch before
        for parameter in active.values():
            parameter.grad_sample = torch.zeros(0, *parameter.shape)  # type: ignore[attr-defined]
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer.signal_skip_step(False)
        self._optimizer.step()

    @staticmethod
    def _check_sizes(active: Parameters, count: int) -> None:
        for name, parameter in active.items():
            sample = getattr(parameter, "grad_sample", None)
            if sample is None or sample.shape != (count, *parameter.shape):
                raise LoricaError(
                    Code.PRIVACY_UNSAFE_MODEL,
                    f"{name} has no gradient per record: expected {count} gradients of shape "
                    f"{tuple(parameter.shape)}, got "
                    f"{'none' if sample is None else tuple(sample.shape)}.",
                )


def _copies(parameters: Parameters) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _assert_moved(
    before: dict[str, torch.Tensor], active: Parameters, parameters: Parameters
) -> None:
    """Every matrix that the step trains must have changed; an A whose B was 0 has a zero gradient
    and is exempt (its gradient is Bᵀ times something). Of an encoder's biases one must have: some
    have no gradient by nature (that of attention's keys, which softmax cancels)."""
    biases = [name for name in active if name.endswith(".bias") and not name.startswith("head.")]
    moved = [name for name in biases if not torch.equal(before[name], active[name])]
    for name, parameter in active.items():
        if moved and name in biases:
            continue
        partner_name = name.replace(".lora_A.", ".lora_B.")
        partner = before.get(partner_name, parameters.get(partner_name))
        idle = ".lora_A." in name and partner is not None and not bool(partner.any())
        if not idle and torch.equal(before[name], parameter):
            raise LoricaError(
                Code.PRIVACY_FROZEN, f"{name} did not move in the first training step."
            )
