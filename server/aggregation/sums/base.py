"""What the rules for sums of sites' releases share."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch

from lorica.common.adapter.state import State
from lorica.common.errors import Code, LoricaError
from lorica.server.aggregation.aggregator import Aggregator
from lorica.server.aggregation.form import check_form


class SumOfReleases(Aggregator):
    """Adds up, in float64, what the sites release for some of the tensors.

    A site's weight plays no part: a sum over its records carries its size by itself, and every
    site's noise is the same, so the plain sum is the best unbiased estimate of the sum over all
    records. Its noise has standard deviation √K · σ · C in every coordinate, for K sites.
    """

    exact: ClassVar[bool] = True

    def __init__(self, start: State, names: Collection[str]) -> None:
        """``names``: the tensors that the sites release; ``start`` as in :class:`Aggregator`."""
        self._start = start
        self._total = {name: torch.zeros(start[name].shape, dtype=torch.float64) for name in names}
        self._sites = 0.0

    def add(self, update: State, weight: float) -> None:
        check_form(update, self._start, self._total)
        for name, total in self._total.items():
            total.add_(update[name].detach())  # in float64, without a copy of it
        self._sites += 1

    def add_sum(self, total: State, *, shares: float, units: float) -> None:
        """Take a sealed sum over sites in place of their releases one by one.

        Args:
            total: what they release, added up.
            shares: the variance of the noise in it, in units of one site's that the plan promises.
            units: what the sites declare, added up.
        """
        self.add(total, units)
        self._sites += shares - 1.0

    def _enough(self) -> None:
        if not self._sites:
            raise LoricaError(Code.TOO_FEW_SITES, "No site released anything in this round.")

    def _next(self, changed: State) -> State:
        """The start with some tensors changed.

        Raises:
            LoricaError: LOR-502 when that is no adapter any more: some value is not finite.
        """
        merged = {**self._start, **changed}
        state = {
            name: tensor.detach().to(torch.float32, copy=True).contiguous()
            for name, tensor in merged.items()
        }
        for name in changed:
            if not bool(state[name].isfinite().all()):
                raise LoricaError(
                    Code.UPDATE_REFUSED,
                    f"The round's step along the sum of all releases makes '{name}' infinite.",
                    mend="Lower the plan's step sizes (section server). Earlier rounds are kept.",
                )
        return state
