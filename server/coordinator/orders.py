"""What is wanted of a run, and which Flower run does it: one small file in the run's folder.

The run's folder is the truth of a run: its plan, its last whole round, and this order. The store
shows it; what Flower's SuperLink knows is lost with it. A lock in the folder makes sure that one
ServerApp writes at a time, whatever died and was started again.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import write_atomically
from lorica.common.machine.lock import holder
from lorica.server.results.folder import ROUNDS, RunFolder

Wanted = Literal["run", "stop", "nothing"]
OrderState = Literal["queued", "running", "stopping", "stopped", "finished", "failed"]

ORDER, LOCK, ORDER_LOCK = "order.json", "server.lock", "order.lock"


class Order(BaseModel):
    """A run's order. ``wanted`` is what should be: the rest is what is."""

    model_config = ConfigDict(extra="forbid")

    run: str
    """Lorica's run id."""
    wanted: Wanted = "run"
    """"run" until it is over, by whatever many Flower runs; "stop" at once: the round in hand
    is given up."""
    state: OrderState = "queued"
    reason: str = ""
    """Why it failed or stopped."""
    flower_runs: list[int] = []
    """Flower's run ids, the newest last."""
    fruitless: int = 0
    """How many Flower runs in a row ended without a whole round."""
    rounds_before: int = 0
    """Whole rounds when the newest Flower run began."""
    submitted: datetime
    by: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in ("stopped", "finished", "failed")


class RunPlace:
    """One run's folder with its order."""

    def __init__(self, runs: Path, run: str) -> None:
        """
        Args:
            runs: folder of all runs.
            run: Lorica's run id, a plain file name.

        Raises:
            LoricaError: LOR-740 that can be no run's id.
        """
        if not run or run != Path(run).name or run.startswith("."):
            raise LoricaError(Code.RUN_UNKNOWN, f"{run!r:.80} is not a run's id.")
        self.run = run
        self.path = runs / run
        self.folder = RunFolder(self.path)

    @classmethod
    def all(cls, runs: Path) -> list[RunPlace]:
        """All runs, the oldest first."""
        found = [cls(runs, path.parent.name) for path in runs.glob(f"*/{ORDER}")]
        return sorted(found, key=lambda place: place.submitted)

    @classmethod
    def find(cls, runs: Path, start: str) -> RunPlace:
        """The run whose id is, or alone begins with, ``start``. Raises LOR-740."""
        names = [path.parent.name for path in runs.glob(f"*/{ORDER}")]
        found = [start] if start in names else [n for n in names if start and n.startswith(start)]
        if len(found) != 1:
            what = f"{len(found)} runs begin with" if found else "No run is called"
            raise LoricaError(Code.RUN_UNKNOWN, f"{what} {start!r:.80}.")
        return cls(runs, found[0])

    def order(self) -> Order:
        """The order as it is now. Raises LOR-740, LOR-604."""
        try:
            return Order.model_validate_json((self.path / ORDER).read_bytes())
        except FileNotFoundError:
            raise LoricaError(Code.RUN_UNKNOWN, f"There is no run {self.run}.") from None
        except (OSError, ValidationError) as error:
            raise LoricaError(
                Code.RUN_NOT_RESUMABLE, f"{self.path / ORDER} cannot be read."
            ) from error

    @property
    def submitted(self) -> datetime:
        """When it was submitted; long ago when its order cannot be read."""
        try:
            return self.order().submitted
        except LoricaError:
            return datetime.min.replace(tzinfo=UTC)

    def write(self, order: Order) -> None:
        """Replace the order."""
        write_atomically(self.path / ORDER, order.model_dump_json(indent=1))

    def change(self, **fields: object) -> Order:
        """The order with some fields changed, written; nobody else changes it meanwhile."""
        descriptor = os.open(self.path / ORDER_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            order = self.order().model_copy(update=fields)
            self.write(order)
        finally:
            os.close(descriptor)
        return order

    @property
    def rounds(self) -> int:
        """Lines of rounds.jsonl: whole rounds, the start's evaluation among them."""
        try:
            return (self.path / ROUNDS).read_bytes().count(b"\n")
        except OSError:
            return 0

    @property
    def served_by(self) -> int | None:
        """Process id of the ServerApp that works on it now."""
        return holder(self.path / LOCK)


def new_order(run: str, by: str) -> Order:
    """The order of a run that was just submitted."""
    return Order(run=run, submitted=datetime.now(UTC), by=by)


def last_round(place: RunPlace) -> dict[str, Any]:
    """The newest whole round's record; empty before the first."""
    try:
        lines = (place.path / ROUNDS).read_text(encoding="utf-8").splitlines()
        return dict(json.loads(lines[-1])) if lines else {}
    except (OSError, ValueError):
        return {}


def wait_until_over(place: RunPlace, poll: float = 0.5) -> Order:
    """The order once the run is over."""
    while not (order := place.order()).over:
        time.sleep(poll)
    return order
