"""The interface of aggregation rules, their registry, and the streaming mean they share."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TypeVar

import torch

from lorica.common.adapter.state import State
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.methods import is_returned
from lorica.server.aggregation.aggregator import Aggregator
from lorica.server.aggregation.form import check_form
from lorica.server.aggregation.means.server_optimizer import ServerOptimizer

RULES: dict[str, type[WeightedMean]] = {}
"""Method -> rule, filled by :func:`rule`."""

Rule = TypeVar("Rule", bound="type[WeightedMean]")


def rule(cls: Rule) -> Rule:
    """Class decorator: register an aggregation rule under its ``method``."""
    RULES[cls.method] = cls
    return cls


class WeightedMean(Aggregator):
    """Rules that begin with the weighted mean of every trained tensor, Σ w·Δ / Σ w, in float64.

    The mean is kept, not the sum: each update moves it by w / Σ w of the way, so that no
    weight a site may declare overflows, and a single site's update is the mean to the bit.
    """

    def __init__(
        self,
        start: State,
        names: Collection[str] | None = None,
        optimizer: ServerOptimizer | None = None,
    ) -> None:
        """Begin a round.

        Args:
            start: the global state, all tensors, float32; copied.
            names: the tensors that the round trains; those of the method's first round when
                omitted.
            optimizer: makes a move of the mean update; None takes it as it is.
        """
        if names is None:
            names = [name for name in start if is_returned(self.method, name, 1)]
        self._start = {
            name: tensor.detach().to(torch.float32, copy=True) for name, tensor in start.items()
        }
        self._mean = {
            name: torch.zeros_like(self._start[name], dtype=torch.float64) for name in names
        }
        self._total = 0.0
        self._optimizer = optimizer

    def add(self, update: State, weight: float) -> None:
        if not (math.isfinite(weight) and weight >= 0):
            raise LoricaError(
                Code.UPDATE_REFUSED, f"The update's weight is {weight}, expected a number >= 0."
            )
        check_form(update, self._start, self._mean)
        total = self._total + weight
        if not math.isfinite(total):
            raise LoricaError(Code.UPDATE_REFUSED, f"The update's weight {weight} is too large.")
        if weight == 0:
            return
        self._absorb(update, weight / total)
        self._total = total

    def _absorb(self, update: State, share: float) -> None:
        """Take in an update that passed all checks; ``share`` is its part of all weights so far."""
        for name, mean in self._mean.items():
            mean.lerp_(update[name].detach().to(mean), share)

    def finish(self) -> State:
        if self._total == 0:
            raise LoricaError(
                Code.TOO_FEW_SITES, "No update with a weight above 0 was aggregated in this round."
            )
        state = {name: tensor.to(torch.float64) for name, tensor in self._start.items()}
        moves = self._mean
        if self._optimizer is not None:
            moves, self.memory = self._optimizer.move(self._mean)
        for name, move in moves.items():
            state[name] += move
        return {
            name: tensor.to(torch.float32).contiguous()
            for name, tensor in self._recombine(state).items()
        }

    def _recombine(self, mean: State) -> State:
        """What the rule makes of the mean state (all tensors, float64); here: itself."""
        return mean
