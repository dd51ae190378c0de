"""Who hears of a run while it goes on."""

from __future__ import annotations

from typing import Protocol

from lorica.common.plan import RunPlan
from lorica.server.results.round import RoundRecord, SiteRound


class Observer(Protocol):
    """Hears what a run does; for progress views and stores."""

    def started(self, plan: RunPlan, sites: list[SiteRound], first_round: int) -> None:
        """The sites were asked; training starts at ``first_round``."""
        ...

    def site_answered(self, round: int, site: SiteRound) -> None:
        """A site's answer of this round has been dealt with."""
        ...

    def round_ended(self, record: RoundRecord) -> None:
        """A round is whole and saved."""
        ...


class Silent:
    """An observer that does nothing."""

    def started(self, plan: RunPlan, sites: list[SiteRound], first_round: int) -> None:
        """Do nothing."""

    def site_answered(self, round: int, site: SiteRound) -> None:
        """Do nothing."""

    def round_ended(self, record: RoundRecord) -> None:
        """Do nothing."""


class Observers:
    """Tells several observers what it hears, in their order."""

    def __init__(self, *observers: Observer) -> None:
        """``observers``: perhaps none."""
        self._observers = observers

    def started(self, plan: RunPlan, sites: list[SiteRound], first_round: int) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.started(plan, sites, first_round)

    def site_answered(self, round: int, site: SiteRound) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.site_answered(round, site)

    def round_ended(self, record: RoundRecord) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.round_ended(record)
