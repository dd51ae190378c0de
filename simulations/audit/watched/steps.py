"""The audited site in local steps: a real LocalTrainer with canaries, and who watches it.

Nothing of the pipeline is rebuilt. Canaries are records among the others: Poisson sampling draws
them, the model runs on their (placeholder) text, the optimizer clips, sums and noises their
gradients. Only what the backward pass wrote for them is overwritten by the auditor's gradient.
The auditor sees what differential privacy lets an adversary see: every noised sum that reaches
the inner optimizer, and, as the strongest adversary, all records of others, which of them were
drawn in each step, and so what they contributed. Its guesses never use which canaries were drawn;
that is kept for :mod:`lorica.simulations.audit.evidence.checks` alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lorica.client.mechanism.noise import NoiseSource
from lorica.client.mechanism.step_sizes import parameter_groups
from lorica.client.mechanism.units import sum_by_unit
from lorica.client.training.session import Session
from lorica.common.adapter.state import State
from lorica.common.cache.batching import Batch
from lorica.common.privacy.event import PrivacyEvent
from lorica.simulations.audit.watched.canaries import OVERSIZE, Directions, Layout
from lorica.simulations.audit.watched.planted import PlantedTrainer, Roster

MakeDirections = Callable[[Layout], Directions]

_TINY = 1e-12


class Watch(Roster):
    """What the auditor gathers over a run of DP-SGD steps."""

    def __init__(self, included: np.ndarray, units: list[str], make: MakeDirections) -> None:
        """
        Args:
            included, units: as a roster's.
            make: chooses the directions once the model's size is known.
        """
        super().__init__(included, units)
        self._make = make
        self._layout: Layout | None = None
        self._forget_real()

    @property
    def layout(self) -> Layout:
        """The trained values, known from the first round on."""
        assert self._layout is not None
        return self._layout

    def prepare(self, layout: Layout) -> None:
        """Choose the directions; once."""
        if self._layout is None:
            self._layout, self.directions = layout, self._make(layout)
            self._forget_real()

    def backward_done(self, rows: np.ndarray, samples: list[Any]) -> None:
        """Note the rows, what real ones contribute, and write canaries' gradients.

        Args:
            rows: of the batch, those that count, shape (n,).
            samples: the trained parameters, ``grad_sample`` of shape (n or more, …) just written.
        """
        canary = self.note(rows)
        if not canary.all():
            real = torch.from_numpy(~canary)
            parts = [p.grad_sample[: len(rows)][real].flatten(1).double() for p in samples]
            self._real += self._contribution(torch.cat(parts, dim=1), rows[~canary])
        if not canary.any():
            return
        which = self.canaries_of(rows[canary])
        wanted = OVERSIZE * self.layout.clip_norm * self.directions.vectors(which)
        sizes = [p.numel() for p in samples]
        for parameter, part in zip(samples, wanted.split(sizes, dim=1), strict=True):
            parameter.grad_sample[: len(rows)][torch.from_numpy(canary)] = part.reshape(
                -1, *parameter.shape
            ).to(parameter.grad_sample.dtype)

    def released(self, total: torch.Tensor) -> None:
        """A step's noised sum (d,), in the unit of gradients, is on its way to the optimizer."""
        seen = self.directions.project(total.double() - self._real)
        self.end_step(seen / self.layout.clip_norm)
        self._forget_real()

    def _contribution(self, gradients: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """What the guarantee says that these rows add to the sum: per unit the mean, clipped."""
        owner = torch.from_numpy(self.owners(rows))
        count = torch.bincount(owner)
        per_unit = sum_by_unit(gradients, owner)[: len(count)] / count[:, None]
        total = torch.zeros(self.layout.size, dtype=torch.float64)
        for group, bound in zip(self.layout.groups, self.layout.clip_norms, strict=True):
            part = per_unit[:, torch.from_numpy(group)]
            factors = (bound / (part.norm(dim=1) + _TINY)).clamp(max=1.0)
            total[torch.from_numpy(group)] = factors @ part
        return total

    def _forget_real(self) -> None:
        size = self._layout.size if self._layout else 0
        self._real = torch.zeros(size, dtype=torch.float64)


class _WatchedSession(Session):
    """A session whose backward passes and optimizer steps a :class:`Watch` hears of."""

    def watch_by(self, watch: Roster) -> None:
        assert isinstance(watch, Watch)
        self._watch = watch
        starts = np.cumsum([0, *(p.numel() for p in self._trained.values())])
        place = {
            id(parameter): np.arange(start, start + parameter.numel())
            for start, parameter in zip(starts, self._trained.values(), strict=False)
        }
        groups = parameter_groups(self._plan, self._trained)
        watch.prepare(
            Layout(
                list(self._trained),
                [np.concatenate([place[id(p)] for p in group["params"]]) for group in groups],
                [group["clip_norm"] for group in groups],
            )
        )

    def train(self, round: int, event: PrivacyEvent, noise: NoiseSource) -> State:
        with self._steps_watched():
            return super().train(round, event, noise)

    def _loss(self, batch: Batch) -> torch.Tensor:
        loss = super()._loss(batch).as_subclass(_HeardLoss)
        rows = self._train_rows[batch.rows[: batch.real]]
        loss.heard = lambda: self._watch.backward_done(rows, list(self._trained.values()))
        return loss

    @contextlib.contextmanager
    def _steps_watched(self) -> Iterator[None]:
        """Hand every gradient that reaches this session's inner optimizer to the watch."""
        trained = list(self._trained.values())
        scale = self._plan.training.expected_batch_size  # the optimizer's mean, undone

        def step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if held == {id(p) for p in trained}:
                gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
                self._watch.released(scale * torch.cat([g.double().flatten() for g in gradients]))

        handle = register_optimizer_step_pre_hook(step)
        try:
            yield
        finally:
            handle.remove()


class _HeardLoss(torch.Tensor):
    """A loss that calls ``heard`` when its backward pass is through."""

    heard: Callable[[], None]

    def backward(self, *args: Any, **kwargs: Any) -> None:
        super().backward(*args, **kwargs)
        self.heard()


class AuditedTrainer(PlantedTrainer):
    """A site whose DP-SGD steps are watched."""

    watched = _WatchedSession
    roster = Watch
    watch: Watch


def most_canaries(smallest_group: int) -> int:
    """How many canaries leave a quarter of the smallest clip group for references."""
    return 3 * smallest_group // 4
