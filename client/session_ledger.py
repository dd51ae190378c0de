"""A ledger of one session: what a simulated site has charged and answered, in plain memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorica.common.accounting import PrivacyEvent, epsilon
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:  # messages bring Flower along, which a ledger does not need
    from lorica.common.messages import Reply


class SessionLedger:
    """Charges of one data set, by run and round, and the replies they paid for."""

    def __init__(self, delta: float) -> None:
        """``delta``: the δ at which :meth:`charge` compares ε with a budget."""
        self._delta = delta
        self._events: dict[str, dict[int, PrivacyEvent]] = {}
        self._replies: dict[tuple[str, int], Reply] = {}
        self._answered: set[tuple[str, int]] = set()

    def charge(self, run: str, round: int, event: PrivacyEvent, *, budget: float) -> None:
        """Write down ``event`` before it happens. A round that was charged but never answered
        costs nothing more.

        Args:
            run: Lorica's run id.
            round: round, from 1.
            event: what the round is about to do.
            budget: ε that all rounds of the run may cost together.

        Raises:
            LoricaError: LOR-403 when the run's rounds would cost more, or the round was answered
                before; nothing is charged.
        """
        if (run, round) in self._answered:
            raise LoricaError(
                Code.PRIVACY_BUDGET,
                f"Round {round} of run {run} was answered before and its reply is no longer kept; "
                "training it again would release a second, unpaid update.",
            )
        rounds = self._events.setdefault(run, {})
        if rounds.get(round) == event:
            return  # charged before, but no reply ever left
        if round in rounds or epsilon([*rounds.values(), event], self._delta) > budget * (1 + 1e-9):
            raise LoricaError(
                Code.PRIVACY_BUDGET,
                f"Round {round} would take run {run} past its budget of epsilon={budget:g} at "
                f"delta={self._delta:g}.",
            )
        rounds[round] = event

    def store(self, run: str, round: int, reply: Reply) -> None:
        """Keep the reply of a charged round; only the newest of a run is kept."""
        self._answered.add((run, round))
        self._replies = {key: kept for key, kept in self._replies.items() if key[0] != run}
        self._replies[run, round] = reply

    def stored(self, run: str, round: int) -> Reply | None:
        """The reply to a request that was answered before, else None."""
        return self._replies.get((run, round))

    def events(self, run: str) -> list[PrivacyEvent]:
        """All that was charged to a run, in round order."""
        return [event for _, event in sorted(self._events.get(run, {}).items())]
