"""What a chain's entries add up to: charges, answers, refusals, and whose they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lorica.client.ledger.chain import (
    BUDGETS,
    CHARGE,
    DONE,
    OPEN,
    REFUSED,
    RETRY,
    START,
    Entry,
    check,
    time_in,
)
from lorica.client.ledger.charge import Budgets, Charge, Period, Spending, number_in, period_of
from lorica.client.ledger.composer import Grown
from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.filter import Tally
from lorica.common.privacy.shared_noise import Observer

_IMPOSSIBLE = (
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    AttributeError,
    RecursionError,
    LoricaError,
)
"""What reading an entry can raise that no ledger ever wrote."""

VERSION = 1
"""Version of the entries' fields."""


@dataclass(frozen=True)
class Charged:
    """A charge in the chain."""

    number: int
    """Of its entry."""
    time: datetime
    charge: Charge
    spent: Spending
    """Everything spent once it was written."""


@dataclass(frozen=True)
class Done:
    """An answer in the chain."""

    number: int
    """Of its entry."""
    time: datetime
    charge: int
    """Number of the entry that paid for it."""
    sha256: str
    """Of the reply, 64 hex digits."""
    size: int
    """Of the reply, bytes."""


@dataclass(frozen=True)
class Refused:
    """A request that a budget did not allow."""

    number: int
    """Of its entry."""
    time: datetime
    run: str
    round: int
    kind: str
    budget: str
    """Which budget: "lifetime", "run", "plan", or a period such as "2026-07"."""
    limit: float
    """That budget, ε in nats."""
    spent: float
    """What was spent of it, ε."""
    asked: float
    """What it would have become, ε."""


@dataclass
class Scope:
    """Charges added up, of a lifetime or of a period."""

    tally: Tally = field(default_factory=Tally)
    first: str = ""
    """The run that was charged first; empty while nothing was."""
    whole: tuple[PrivacyEvent, ...] = ()
    """All that the first run was to do, as its first charge in here says."""
    shared: bool = False
    """Whether a second run was charged as well."""
    seen: int = 0
    """Charges of the history that were looked at."""
    alone: Grown | None = None
    """Of a period: all events, as long as they are of the first run; later it does not grow."""

    def add(self, charge: Charge) -> None:
        """Count a charge in."""
        self.tally.add(charge.events)
        self.first = self.first or charge.run
        self.whole = self.whole or charge.whole or charge.events
        self.shared = self.shared or charge.run != self.first
        if not self.shared and self.alone is not None:
            self.alone.add(charge.events)


class History:
    """The fold of a chain's entries; grows by one entry at a time, checked as it grows."""

    def __init__(self) -> None:
        self.hashes: list[str] = []
        """Hash of every entry, in order."""
        self.ledger = ""
        """The ledger's own id."""
        self.data_set = ""
        self.unit = ""
        self.delta = 0.5
        self.opened: datetime | None = None
        self.changed: datetime | None = None
        """Time of the newest entry."""
        self.budgets: list[tuple[datetime, Budgets]] = []
        """The site's budgets and since when each held; the newest last."""
        self.charges: list[Charged] = []
        self.done: dict[tuple[str, int, str], Done] = {}
        """Answers, by run, round and kind."""
        self.answers: dict[int, tuple[str, int, str]] = {}
        """Run, round and kind, by the number of the answer's entry."""
        self.refused: list[Refused] = []
        self.retries: Counter[int] = Counter()
        """Further attempts, by the number of the charge's entry."""
        self.fingerprints: dict[str, str] = {}
        """The plan's fingerprint of every run."""
        self._newest: dict[tuple[str, int, str], Charged] = {}
        self._of_run: dict[str, list[Charged]] = {}
        self._grown: dict[str, Grown] = {}
        self._scopes: dict[tuple[Period, str] | None, Scope] = {}

    @property
    def count(self) -> int:
        """Number of entries."""
        return len(self.hashes)

    @property
    def head(self) -> str:
        """Hash of the newest entry."""
        return self.hashes[-1] if self.hashes else START

    def events(
        self, run: str | None = None, within: tuple[Period, str] | None = None
    ) -> list[PrivacyEvent]:
        """All events charged, in chain order; of one run, or within one named period, if given."""
        return [
            event
            for charged in (self.charges if run is None else self._of_run.get(run, []))
            if within is None or period_of(charged.time, within[0]) == within[1]
            for event in charged.charge.events
        ]

    def of_run(self, run: str) -> Grown:
        """All events charged to a run, in chain order; to read, not to change. The time it takes
        does not grow with the history."""
        return self._grown.get(run) or Grown()

    def observed(self, observer: Observer) -> list[PrivacyEvent]:
        """All events charged, with the noise that was left for an observer of sealed sums; those
        whose noise was this site's own are the same for all."""
        return [
            charged.charge.shared.seen_by(observer, event)
            for charged in self.charges
            for event in charged.charge.events
        ]

    def scope(self, within: tuple[Period, str] | None = None) -> Scope:
        """What was charged in all, or within one named period, added up; to read, not to change.

        Whatever was charged since the last call is added: the time it takes does not grow with
        the history.
        """
        if within not in self._scopes:
            self._scopes[within] = Scope(alone=None if within is None else Grown())
        scope = self._scopes[within]
        for charged in self.charges[scope.seen :]:
            if within is None or period_of(charged.time, within[0]) == within[1]:
                scope.add(charged.charge)
        scope.seen = len(self.charges)
        return scope

    def newest(self, key: tuple[str, int, str]) -> Charged | None:
        """The newest charge for (run, round, kind), answered or not."""
        return self._newest.get(key)

    def runs(self) -> list[str]:
        """Runs in the order of their first charges."""
        return list(self.fingerprints)

    def add(self, entry: Entry) -> None:
        """Take in the next entry.

        Raises:
            LoricaError: LOR-612 when it does not follow from the ones before.
        """
        content = check(entry, self.count + 1, self.head)
        try:
            time = time_in(content["time"])
            kind = content["entry"]
            _FOLD[kind](self, entry.number, time, content)
        except _IMPOSSIBLE as error:
            raise LoricaError(
                Code.LEDGER_DAMAGED, f"Entry {entry.number} of the ledger makes no sense: {error}."
            ) from error
        self.changed = time if self.changed is None else max(time, self.changed)
        self.hashes.append(entry.hash)

    def _open(self, number: int, time: datetime, content: dict[str, Any]) -> None:
        if number != 1 or content["version"] != VERSION:
            raise ValueError(f"a ledger of version {content['version']} opened at {number}")
        self.ledger, self.data_set = content["ledger"], content["data_set"]
        self.unit, self.delta = content["unit"], float(content["delta"])
        self.opened = time
        self.budgets.append((time, Budgets.from_json(content["budgets"])))

    def _budgets(self, number: int, time: datetime, content: dict[str, Any]) -> None:
        self.budgets.append((time, Budgets.from_json(content["budgets"])))

    def _charge(self, number: int, time: datetime, content: dict[str, Any]) -> None:
        charge = Charge.from_json(content)
        if self.fingerprints.setdefault(charge.run, charge.fingerprint) != charge.fingerprint:
            raise ValueError("its plan is not its run's")
        charged = Charged(number, time, charge, Spending.from_json(content["spent"]))
        self.charges.append(charged)
        self._newest[charge.key] = charged
        self._of_run.setdefault(charge.run, []).append(charged)
        if charge.run not in self._grown:
            self._grown[charge.run] = Grown()
        self._grown[charge.run].add(charge.events)

    def _retry(self, number: int, time: datetime, content: dict[str, Any]) -> None:
        self.retries[content["charge"]] += 1

    def _done(self, number: int, time: datetime, content: dict[str, Any]) -> None:
        key = (content["run"], content["round"], content["kind"])
        charged = self._newest.get(key)
        if charged is None or charged.number != content["charge"] or key in self.done:
            raise ValueError("it answers what was not charged, or was answered before")
        self.answers[number] = key
        self.done[key] = Done(number, time, charged.number, content["sha256"], content["bytes"])

    def _refused(self, number: int, time: datetime, content: dict[str, Any]) -> None:
        self.refused.append(
            Refused(
                number,
                time,
                content["run"],
                content["round"],
                content["kind"],
                content["budget"],
                *(number_in(content[name]) for name in ("limit", "spent", "asked")),
            )
        )


_FOLD: dict[str, Callable[[History, int, datetime, dict[str, Any]], None]] = {
    OPEN: History._open,
    BUDGETS: History._budgets,
    CHARGE: History._charge,
    RETRY: History._retry,
    DONE: History._done,
    REFUSED: History._refused,
}
