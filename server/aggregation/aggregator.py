"""What an aggregation rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from lorica.common.adapter.state import State


class Aggregator(ABC):
    """Takes the updates of one round one by one and gives the next global state.

    Its memory does not grow with the number of sites (but for :mod:`robust` rules, which hold the
    updates of a round), and it keeps no reference to an update.
    """

    method: ClassVar[str]
    """The rule's name, as in the plan's ``aggregation.method``."""

    exact: ClassVar[bool]
    """Whether the next product B·A equals the weighted mean of the sites' products."""

    memory: State = {}
    """What the rule needs to know in the next round; kept in the run's checkpoint."""

    @abstractmethod
    def add(self, update: State, weight: float) -> None:
        """Take one site's update.

        Args:
            update: the site's value minus the global value, of exactly the tensors that the
                method trains; float32, bfloat16 or float16.
            weight: the site's weight, >= 0, in any unit common to the sites (records).

        Raises:
            LoricaError: LOR-502; the aggregate is then as it was before the call.
        """

    @abstractmethod
    def finish(self) -> State:
        """The next global state: all tensors, float32, contiguous, sharing memory with none.

        May be called at any time, and more updates added after it.

        Raises:
            LoricaError: LOR-503 when the weights added so far sum to 0.
        """
