"""DP-SGD at a site: Poisson batches, per-record clipping, Gaussian noise, one step at a time.

Opacus' ``DPOptimizer`` does the step (its virtual steps accumulate micro-batches); the
per-record gradients come from :mod:`lorica.client.per_sample`, noise and sampling from a
:class:`lorica.client.noise.NoiseSource`.

Formal guarantee:
    *Neighbouring relation*: two data sets are neighbours when one is the other with one record
    added or removed. *Mechanism*: each step includes every record independently with
    probability q (a function of public figures, not of the records), computes per-record
    gradients g_i, and releases Σ g_i · min(1, C / ‖g_i‖₂) + N(0, σ²C² I). A record whose
    gradient is not finite contributes 0. *Sensitivity*: the clipped sum changes by at most C in
    L2 norm between neighbours, so each step is the Poisson-subsampled Gaussian mechanism with
    noise multiplier σ and sample rate q; T steps compose to the ε that
    :func:`lorica.common.accounting.epsilon` states for ``PrivacyEvent(σ, q, T)``. Everything
    after the noise (Adam, several local steps, the returned update) is post-processing. The
    model must not couple records; :func:`~lorica.client.per_sample.enable_per_sample_gradients`
    refuses layers that do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from opacus.optimizers import DPOptimizer

from lorica.client.noise import NoiseSource
from lorica.common.batching import micro_batches
from lorica.common.errors import Code, LoricaError

LossOfRows = Callable[[np.ndarray], torch.Tensor]
"""Summed loss of the records with these rows; its backward pass fills ``grad_sample``."""


_TINY = 1e-12  # keeps C / 0 finite


class NoisyOptimizer(DPOptimizer):
    """Opacus' optimizer with noise from a :class:`NoiseSource` and hardened clipping."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise: NoiseSource,
        noise_multiplier: float,
        clip_norm: float,
        expected_batch_size: int,
    ) -> None:
        """σ and C as in the module's guarantee; gradients are divided by the *expected* batch
        size, a public constant (the drawn one is private). Without noise (σ = 0) there is no
        privacy to keep, and gradients are clipped all the same."""
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction="mean",
        )
        self._noise = noise

    def clip_and_accumulate(self) -> None:
        """Clip and sum in float64; a record with any non-finite gradient counts as 0.

        Float32 sums round differently with and without a record (arXiv 2207.10635), which would
        add to the sensitivity; in float64 that is below the grid that the noise source rounds
        to.
        """
        samples = [sample.flatten(1).double() for sample in self.grad_samples]
        norms = torch.stack([sample.norm(dim=1) for sample in samples]).norm(dim=0)
        finite = norms.isfinite()
        if not bool(finite.all()):
            samples = [torch.where(finite[:, None], sample, 0.0) for sample in samples]
            norms = torch.where(finite, norms, 0.0)
        factors = (self.max_grad_norm / (norms + _TINY)).clamp(max=1.0)
        for parameter, sample in zip(self.params, samples, strict=True):
            total = (factors @ sample).reshape(parameter.shape)
            held = parameter.summed_grad
            parameter.summed_grad = total if held is None else held + total

    def add_noise(self) -> None:
        """``grad`` = clipped sum + N(0, (σC)²), drawn from the noise source."""
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            total = parameter.summed_grad
            parameter.grad = self._noise.add_noise(total, std).to(parameter.dtype)


class DPTrainer:
    """Runs DP-SGD steps over one site's records for one round."""

    def __init__(
        self,
        parameters: dict[str, torch.nn.Parameter],
        optimizer: NoisyOptimizer,
        loss_of_rows: LossOfRows,
        lengths: np.ndarray,
        *,
        sample_rate: float,
        noise: NoiseSource,
    ) -> None:
        """
        Args:
            parameters: the trained parameters by name.
            optimizer: over exactly these parameters.
            loss_of_rows: summed loss of some rows.
            lengths: tokens of every record, shape (N,).
            sample_rate: q, from public figures only.
            noise: source of the Poisson sampling.
        """
        self._parameters = parameters
        self._optimizer = optimizer
        self._loss_of_rows = loss_of_rows
        self._lengths = lengths
        self._sample_rate = sample_rate
        self._noise = noise
        self._checked = False

    def run(self, steps: int, on_step: Callable[[int], Any] | None = None) -> None:
        """Take ``steps`` DP-SGD steps; ``on_step`` hears the number of steps taken.

        Raises:
            LoricaError: LOR-404 when per-record gradients cannot be trusted, LOR-405 when a
                trainable matrix did not move in the first step.
        """
        for step in range(steps):
            drawn = self._noise.poisson_mask(len(self._lengths), self._sample_rate)
            self._step(np.flatnonzero(drawn.numpy()))
            if on_step is not None:
                on_step(step + 1)

    def _step(self, rows: np.ndarray) -> None:
        before = None if self._checked else _copies(self._parameters)
        self._optimizer.zero_grad(set_to_none=True)
        batches = list(micro_batches(rows, self._lengths))
        for position, batch in enumerate(batches):
            self._loss_of_rows(batch).backward()
            self._check_sizes(len(batch))
            self._optimizer.signal_skip_step(position + 1 < len(batches))
            self._optimizer.step()
            if position + 1 < len(batches):
                self._optimizer.zero_grad(set_to_none=True)
        if not batches:
            self._empty_step()
        if before is not None and len(rows):
            _assert_moved(before, self._parameters)
            self._checked = True

    def _empty_step(self) -> None:
        """A step whose batch is empty: noise alone, accounted like any other."""
        for parameter in self._parameters.values():
            parameter.grad_sample = torch.zeros(0, *parameter.shape)  # type: ignore[attr-defined]
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer.signal_skip_step(False)
        self._optimizer.step()

    def _check_sizes(self, count: int) -> None:
        for name, parameter in self._parameters.items():
            sample = getattr(parameter, "grad_sample", None)
            if sample is None or sample.shape != (count, *parameter.shape):
                raise LoricaError(
                    Code.PRIVACY_UNSAFE_MODEL,
                    f"{name} has no gradient per record: expected {count} gradients of shape "
                    f"{tuple(parameter.shape)}, got "
                    f"{'none' if sample is None else tuple(sample.shape)}.",
                )


def _copies(parameters: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _assert_moved(
    before: dict[str, torch.Tensor], parameters: dict[str, torch.nn.Parameter]
) -> None:
    """Every trainable matrix must have changed; an A whose B was 0 has a zero gradient and is
    exempt (its gradient is Bᵀ times something)."""
    for name, parameter in parameters.items():
        partner = before.get(name.replace(".lora_A.", ".lora_B."))
        idle = ".lora_A." in name and partner is not None and not bool(partner.any())
        if not idle and torch.equal(before[name], parameter):
            raise LoricaError(
                Code.PRIVACY_FROZEN, f"{name} did not move in the first training step."
            )
