"""One sum as everybody in it sees it: context, roster, numbers, graph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lorica.common.errors import Code, LoricaError
from lorica.common.secure_sum.context import SumContext
from lorica.common.secure_sum.graph import Neighbours
from lorica.common.secure_sum.roster import Roster
from lorica.common.secure_sum.terms import Terms


@dataclass(frozen=True)
class OneSum:
    """What the coordinator and every site of a sum must agree on."""

    context: SumContext
    roster: Roster
    terms: Terms

    def __post_init__(self) -> None:
        context, terms = self.context, self.terms
        if (context.roster, context.threshold) != (self.roster.digest, terms.threshold) or (
            terms.sites != len(self.roster)
        ):
            raise LoricaError(
                Code.SUM_UNKNOWN, "The sum's context, roster and numbers do not belong together."
            )

    @staticmethod
    def of(
        roster: Roster,
        terms: Terms,
        *,
        run: str,
        fingerprint: str,
        round: int,
        kind: str,
        values: int,
        bits: int,
    ) -> OneSum:
        """The sum of a round over a roster's sites."""
        context = SumContext(
            run, fingerprint, round, kind, roster.digest, terms.threshold, values, bits
        )
        return OneSum(context, roster, terms)

    @cached_property
    def digest(self) -> bytes:
        """Of the context."""
        return self.context.digest

    @cached_property
    def graph(self) -> Neighbours:
        """Who shares with whom."""
        return Neighbours(self.digest, self.terms)

    @property
    def everybody(self) -> frozenset[int]:
        """All positions."""
        return frozenset(range(self.terms.sites))

    @property
    def vector_bytes(self) -> int:
        """Length of a packed vector."""
        return self.context.values * self.context.bits // 8

    def needs_signatures(self, survivors: frozenset[int]) -> bool:
        """Whether sites open a sum over these only with a threshold of signatures."""
        return self.terms.always_signed or survivors != self.everybody
