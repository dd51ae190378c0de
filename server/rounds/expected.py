"""What the updates of one round must look like, worked out once and checked for each."""

from __future__ import annotations

from lorica.common.adapter.state import State, unpack_state
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import returned
from lorica.common.wire.rounding import decode
from lorica.server.aggregation.form import CheckedUpdate
from lorica.server.rounds.screening import honest_norm, longest_sum, screen


class ExpectedUpdates:
    """Reads and screens the updates of one round."""

    def __init__(self, plan: RunPlan, round: int, state: State) -> None:
        """
        Args:
            plan: the run.
            round: its number, from 1.
            state: the global state that the round starts from; read, never changed.
        """
        self._plan, self._state = plan, state
        self._names = returned(plan, round, state)
        self._shapes = {name: state[name].shape for name in self._names}
        longest = honest_norm(plan, state, round)
        self._longest = longest_sum(plan, state, round) if longest is None else lambda _: longest

    def read(self, blob: bytes, units: int) -> CheckedUpdate:
        """The update in a reply's blob, as float32, with its L2 norm.

        Args:
            blob: of the reply.
            units: what the site declares as its number of units; 0: nothing.

        Raises:
            LoricaError: LOR-501 when it cannot be read, LOR-502 when screening refuses it.
        """
        update = decode(unpack_state(blob), self._plan.wire.update, self._shapes)
        longest = self._longest(units)
        norm = screen(update, self._state, self._names, max_norm=longest)
        return CheckedUpdate(update, norm)
