"""Synchronised mode: one step of the coordinator's optimiser along the sum of all gradients."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import ClassVar

import torch

from lorica.common.adapter.state import State
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import place_in_stage, place_of_tensor, unit_bound
from lorica.common.plan.tensors import Part, part_of
from lorica.server.aggregation.sums.averaging import averaged
from lorica.server.aggregation.sums.base import SumOfReleases
from lorica.server.aggregation.sums.per_weight import PerWeightAdam
from lorica.server.aggregation.sums.step_sizes import number_of_stage, step_size

_LEAST_SIGNAL = 0.1  # share of the noise's variance that "adam-corrected" divides by at least


class GradientStep(SumOfReleases):
    """θ' = θ - η·u(Σ_k G_k), for the noised gradient sums G_k of the sites.

    Per tensor with d values, with G = Σ G_k and C the norm that one unit's part is clipped to
    (:func:`lorica.common.plan.stages.unit_bound`), in the t-th round of its stage that trains it
    ("rolora" trains A and B in alternate rounds):

    - direction: m = β₁ m + (1 - β₁) G, bias-corrected;
    - "adam": v = β₂ v + (1 - β₂) ‖G‖²/d, bias-corrected, u = m / √v. One v for a whole tensor:
      noise is alike in all values, a v for each value would mostly measure its noise. The noise
      counts in v, so steps shrink as it grows;
    - "adam-corrected": v less the noise's known K σ² C² (at least a tenth of that is left), as
      in DP-AdamBC (arXiv 2312.14334);
    - "momentum": u = m / C.

    The bias is trained as the weight of a small constant input
    (:data:`~lorica.common.tasks.text_classification.BIAS_INPUT`): what sites release for it is
    that weight's gradient, and its step is scaled back.

    In LoRA rounds the factors have Adam for every weight instead, in which the noise is known
    (:class:`lorica.server.aggregation.sums.per_weight.PerWeightAdam`); so has the head, where
    they are the run's first.

    η is :func:`lorica.server.aggregation.sums.step_sizes.step_size`. What a stage ends with may be
    a mean over its iterates (:func:`lorica.server.aggregation.sums.averaging.averaged`).

    **Exact**: all sites differentiate at one common (A, B), so there is no product of averages.

    Bytes per site and round: up what is trained, down the same and, in LoRA rounds, A.

    Epsilon: none beyond the sites' own.
    """

    method: ClassVar[str] = "gradient"

    def __init__(
        self,
        start: State,
        names: Collection[str],
        plan: RunPlan,
        round: int,
        *,
        noise_multiplier: float,
        memory: State,
    ) -> None:
        """
        Args:
            start: as in :class:`Aggregator`.
            names: the tensors that the round trains.
            plan: gives the optimiser and the clip norm.
            round: number of the round.
            noise_multiplier: σ of one site's release.
            memory: the optimiser's tensors after the last round; empty at first.
        """
        super().__init__(start, names)
        self._plan, self._round = plan, round
        self._bound = unit_bound(plan, round)
        self._noise = noise_multiplier * self._bound
        self._before = dict(memory)
        self.memory: State = dict(memory)
        """The optimiser's tensors, after :meth:`finish` those of this round."""

    def finish(self) -> State:
        self._enough()
        own = {n: total for n, total in self._total.items() if part_of(n) is not Part.HEAD}
        head = {n: total for n, total in self._total.items() if n not in own}
        along = self._along_factors(own) if own else {}
        if own and not number_of_stage(self._plan, self._round):
            along |= self._along_weights(head)
        else:
            along |= {n: self._along(n, total) for n, total in head.items()}
        changed = {}
        for name, u in along.items():
            size = step_size(self._plan, self._round, name, self._start)
            changed[name] = self._start[name].double() - size * u
        means, memory = averaged(self._plan, self._round, self._start, changed, self._before)
        self.memory.update(memory)
        return self._next(changed | means)

    def _along_factors(self, totals: State) -> State:
        """u of the LoRA factors (or biases); updates the memory."""
        adam, variance = self._per_weight(), self._sites * self._noise**2
        length = adam.length(
            list(totals.values()), *place_in_stage(self._plan, self._round), variance
        )
        self.memory.update(adam.memory)
        return {name: length * u for name, u in self._along_weights(totals).items()}

    def _along_weights(self, totals: State) -> State:
        """u of some tensors by Adam of every weight; updates the memory."""
        adam, variance = self._per_weight(), self._sites * self._noise**2
        found = {}
        for name, total in totals.items():
            t = place_of_tensor(self._plan, self._round, name)[0]
            found[name] = adam.along(name, total, t, variance)
        self.memory.update(adam.memory)
        return found

    def _per_weight(self) -> PerWeightAdam:
        server = self._plan.server
        return PerWeightAdam(
            self._before, momentum=server.lora_momentum, second_moment=server.second_moment
        )

    def _along(self, name: str, total: torch.Tensor) -> torch.Tensor:
        """u of one tensor of the head; updates the memory."""
        server, t = self._plan.server, place_of_tensor(self._plan, self._round, name)[0]
        first, noise = t == 1, self._sites * self._noise**2
        m = torch.zeros_like(total) if first else self._before[f"m.{name}"].double()
        m = server.momentum * m + (1 - server.momentum) * total
        self.memory[f"m.{name}"] = m
        mean = m / (1 - server.momentum**t)
        beta = server.second_moment
        v = 0.0 if first else float(self._before[f"v.{name}"])
        v = beta * v + (1 - beta) * float(total.square().mean())
        self.memory[f"v.{name}"] = torch.tensor([v], dtype=torch.float64)
        v /= 1 - beta**t
        if server.optimizer == "momentum":
            return mean / self._bound
        if server.optimizer == "adam-corrected":
            v = max(v - noise, _LEAST_SIGNAL * noise)
        return mean / math.sqrt(v) if v > 0 else torch.zeros_like(mean)
