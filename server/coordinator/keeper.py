"""Keep runs going: start what was submitted, take up again what died, stop what should stop.

Looked at every few seconds by ``lorica coordinator start``. A run is taken up again under a new
Flower run, with the same Lorica run id, from its last whole round; sites know a round they have
answered already and send the stored reply, so nothing is spent or counted twice.
"""

from __future__ import annotations

import logging
import time
from typing import Literal

from lorica.common.errors import Code, LoricaError
from lorica.common.wire.bundle import build_bundle
from lorica.server.coordinator.control import Control
from lorica.server.coordinator.home import CoordinatorHome
from lorica.server.coordinator.noting import mark, note_flower_run, stop_asked
from lorica.server.coordinator.orders import Order, RunPlace

MOST_FRUITLESS = 20
"""Flower runs in a row without a whole round, after which a run counts as failed."""

_START_SECONDS = 900.0  # longest time from a Flower run's start until its ServerApp holds the lock

_log = logging.getLogger("lorica.coordinator")


class Keeper:
    """Looks after all runs of a coordinator."""

    def __init__(self, home: CoordinatorHome, control: Control) -> None:
        """
        Args:
            home: the coordinator's.
            control: of its SuperLink.
        """
        self._home, self._control = home, control
        self._bundle: bytes | None = None
        self._started: dict[str, float] = {}
        self._seen_serving: set[str] = set()
        self._problems: dict[str, str] = {}

    def look(self) -> None:
        """Do what is to be done now.

        Raises:
            LoricaError: LOR-727 the SuperLink does not answer.
        """
        for place in RunPlace.all(self._home.runs):
            try:
                order = place.order()
                if order.over:
                    self._started.pop(order.run, None)
                else:
                    self._look_at(place, order)
            except LoricaError as error:
                if error.code is Code.COORDINATOR_DOWN:
                    raise
                if self._problems.get(place.run) != str(error):  # one run's trouble is not others'
                    _log.error("run %s: %s", place.run, error)
                self._problems[place.run] = str(error)

    def _look_at(self, place: RunPlace, order: Order) -> None:
        serving = place.served_by is not None
        if order.wanted == "run" and stop_asked(place):
            order = place.change(wanted="stop", state="stopping")
        if serving:
            self._seen_serving.add(order.run)
            return
        if order.wanted == "stop":
            self._end(order)
            self._over(place, "stopped", "Stopped by an operator.")
            return
        if not order.flower_runs:
            self._start(place, order)
            return
        flower = self._control.run(order.flower_runs[-1])
        begun = self._started.get(order.run)
        waiting = begun is not None and time.monotonic() - begun < _START_SECONDS
        died = order.run in self._seen_serving
        if flower is not None and not flower.over and waiting and not died:
            return
        if place.order().over or place.served_by is not None:  # it changed between our two looks
            return
        fruitless = 0 if place.rounds > order.rounds_before else order.fruitless + 1
        self._end(order)
        if fruitless >= MOST_FRUITLESS:
            detail = flower.details if flower else "the SuperLink does not know the Flower run"
            error = LoricaError(
                Code.RUN_CRASHED,
                f"The run died {fruitless} times without a whole round; last: {detail:.300}",
            )
            self._over(place, "failed", str(error), error.code.value)
            return
        _log.warning(
            "run %s: its Flower run %d died; it goes on from its last whole round",
            order.run,
            order.flower_runs[-1],
        )
        self._start(place, order.model_copy(update={"fruitless": fruitless}))

    def _start(self, place: RunPlace, order: Order) -> None:
        if self._bundle is None:
            self._bundle = build_bundle()
        place.change()  # raises on a full disk, where one Flower run after another would be lost
        flower = self._control.start(self._bundle, order.run)
        self._started[order.run] = time.monotonic()
        self._seen_serving.discard(order.run)
        place.change(
            flower_runs=[*order.flower_runs, flower],
            fruitless=order.fruitless,
            rounds_before=place.rounds,
        )
        note_flower_run(place, flower)
        _log.info("run %s: started as Flower run %d", order.run, flower)

    def _end(self, order: Order) -> None:
        """Have Flower drop what is left of the newest Flower run: late replies have no place."""
        if not order.flower_runs:
            return
        try:
            flower = self._control.run(order.flower_runs[-1])
            if flower is not None and not flower.over:
                self._control.stop(flower.run)
        except LoricaError as error:
            _log.info("run %s: %s", order.run, error)

    def _over(
        self, place: RunPlace, state: Literal["stopped", "failed"], reason: str, code: str = ""
    ) -> None:
        place.change(wanted="nothing", state=state, reason=reason)
        mark(place, state, reason, code)
        _log.info("run %s: %s. %s", place.run, state, reason)
