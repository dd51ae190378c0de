"""Virtual sites on the actors of a Ray cluster: one machine, or many.

An actor has some of the sites for good: their ledgers, their model and what is kept of their
records stay with it between rounds. Plan and records are sent to a node once, a round's request
once a round. What the sites answer is what they answer in one process: seeded noise follows from
seed, site and round, not from where a site lives.

When an actor dies, with its node or alone, its sites are made anew on another, and what was asked
of it and not answered is asked again. Of a site that is made anew the ledger begins anew, too; what
it may spend is then held by the plan, whose rounds ask it once each. Identities of sealed sums and
personal tensors outlive an actor: they follow from the seed, or lie in files.

Which cluster: the one that the environment variable RAY_ADDRESS names, else one made on this
machine for as long as the run takes. Every node needs this version of Lorica and the backbone's
files, and several machines the results folder under one path where sites keep tensors of their own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from lorica.client.training.models import Models
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.simulations.run.engines import virtual_nodes
from lorica.simulations.run.lines import KeptLines
from lorica.simulations.run.sites import make_trainers
from lorica.simulations.run.workers import cores, shared_out

_MOST_DEATHS = 3
"""How often a worker's sites are made anew before the run gives up: what they do may be what kills
it."""

_CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class _Request:
    """A request on its way: its content is a reference to what lies on every node once."""

    kind: Any
    partitions: list[int]


class _Sites:
    """What an actor runs: all of a plan's sites, of which it is asked for its own."""

    def __init__(self, plan: RunPlan, records: Records, personal: str) -> None:
        torch.set_num_threads(1)  # an actor has a core
        trainers = make_trainers(records, plan, personal=Path(personal), models=Models())
        self._nodes = virtual_nodes(trainers, plan)
        self._lines = KeptLines()
        self._lines.take_over()

    def answer(self, content: Any, request: Any) -> tuple[Any, list[logging.LogRecord]]:
        """The reply, and what was logged meanwhile."""
        if isinstance(content, _Request):
            content = content.kind, request, content.partitions
        return self._nodes.answer(content), self._lines.take()


class RaySites:
    """Actors that answer for virtual nodes, as workers do; a context manager around the run."""

    def __init__(
        self, plan: RunPlan, records: Records, personal: Path, costs: Mapping[str, float]
    ) -> None:
        """
        Args:
            plan: the run.
            records: of all sites.
            personal: folder for what methods such as "fedsa" leave to a site; nodes of other
                machines need it under the same path.
            costs: site -> about what it has to do, in the order of their partition ids.

        Raises:
            LoricaError: LOR-207 without Ray.
        """
        try:
            import ray
        except ImportError:
            raise LoricaError(
                Code.PACKAGE_MISSING,
                'simulation.engine = "ray" needs Ray.',
                mend="pip install 'lorica[simulation]', or use engine = \"in-process\".",
            ) from None
        self._ray, self._plan, self._records = ray, plan, records
        self._personal, self._costs = personal, dict(costs)
        self._owners: list[int] = []
        self._actors: list[Any] = []
        self._deaths: list[int] = []
        self._asked: dict[str, tuple[int, Any, Any]] = {}  # message -> worker and what was sent
        self._waiting: dict[str, Any] = {}  # message -> what becomes its reply
        self._newest: tuple[Any, Any] = (None, None)  # a request, and where it lies

    def __enter__(self) -> RaySites:
        ray = self._ray
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._began = not ray.is_initialized()
        if self._began:
            _require_head(os.environ.get("RAY_ADDRESS", ""))
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise _unreachable(str(error)) from error
        there = max(1, int(ray.cluster_resources().get("CPU", cores())))
        count = max(1, min(self._plan.simulation.workers or there, len(self._costs)))
        self._owners = shared_out(list(self._costs.values()), count)
        # what all of them need lies on every node once
        self._held = [ray.put(self._plan), ray.put(self._records)]
        self._deaths = [0] * count
        self._actors = [self._actor(min(1.0, there / count)) for _ in range(count)]
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        self._actors, self._held, self._newest = [], [], (None, None)
        self._asked.clear()
        self._waiting.clear()
        if self._began:
            self._ray.shutdown()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._actors)

    def owner(self, partition: int) -> int:
        """The actor of a site."""
        return self._owners[partition]

    def ask(self, identity: str, partition: int, content: Any) -> None:
        """Give what is asked of a site, or of several that begin with it, to their actor."""
        request = None
        if isinstance(content, tuple):  # one request to many sites: sent to a node once
            kind, one, partitions = content
            if self._newest[0] is not one:
                self._newest = one, self._ray.put(one)
            content, request = _Request(kind, partitions), self._newest[1]
        self._asked[identity] = self._owners[partition], content, request
        self._send(identity)

    def reply(self, identity: str) -> Any:
        """What came back for what was asked, once it is there.

        Raises:
            LoricaError: LOR-511 when its sites' actors died again and again, LOR-506 when an actor
                failed.
        """
        while (got := self._got(identity)) is None:
            pass
        content, lines = got
        worker, _, _ = self._asked.pop(identity)
        del self._waiting[identity]
        self._deaths[worker] = 0
        for line in lines:
            logging.getLogger(line.name).handle(line)
        return content

    def forget(self, identities: Iterable[str]) -> None:
        """Take back what was asked and is wanted no more; what comes of it is thrown away."""
        for identity in identities:
            self._asked.pop(identity, None)
            self._waiting.pop(identity, None)

    def _got(self, identity: str) -> Any:
        """What came back, or None where the sites were made anew and asked again."""
        ray = self._ray
        try:
            return ray.get(self._waiting[identity])
        except ray.exceptions.RayTaskError as error:
            raise LoricaError(Code.ENGINE_FAILED, f"A worker failed: {error.cause!r}") from error
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
            self._make_anew(self._asked[identity][0], error)
            return None

    def _make_anew(self, worker: int, error: Exception) -> None:
        """Have a worker's sites on a new actor, and ask it all that they have not answered."""
        self._deaths[worker] += 1
        named = [name for name, of in zip(self._costs, self._owners, strict=True) if of == worker]
        if self._deaths[worker] > _MOST_DEATHS:
            self._given_up(named, error)
        logging.getLogger("lorica.simulation").warning(
            "the worker of %s and %d more sites died; they are made anew", named[0], len(named) - 1
        )
        self._actors[worker] = self._actor(0.0)  # where it was, there may be no core any more
        for identity, (of, _, _) in self._asked.items():
            if of == worker and not self._there(identity):
                self._send(identity)

    def _there(self, identity: str) -> bool:
        """Whether a reply came before its actor died."""
        ray = self._ray
        try:
            ready, _ = ray.wait([self._waiting[identity]], timeout=0)
            if ready:
                ray.get(ready[0])
        except ray.exceptions.RayError:
            return False
        return bool(ready)

    def _given_up(self, named: Sequence[str], error: Exception) -> NoReturn:
        raise LoricaError(
            Code.WORKER_DIED,
            f"The worker of site '{named[0]}' and {len(named) - 1} more died {_MOST_DEATHS + 1} "
            f"times while they worked; Ray says: {str(error).splitlines()[0]}",
        ) from error

    def _send(self, identity: str) -> None:
        worker, content, request = self._asked[identity]
        self._waiting[identity] = self._actors[worker].answer.remote(content, request)

    def _actor(self, cores: float) -> Any:
        kind = self._ray.remote(_Sites).options(num_cpus=cores, scheduling_strategy="SPREAD")
        return kind.remote(*self._held, str(self._personal.resolve()))


def _require_head(address: str) -> None:
    """Raise at once where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return  # none, or one that only Ray can read
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(f"nobody answers at RAY_ADDRESS, {address}: {error}") from error


def _unreachable(why: str) -> LoricaError:
    return LoricaError(
        Code.ENGINE_FAILED,
        f"Ray did not start: {why}",
        mend="Start a cluster (ray start --head) and name its head in RAY_ADDRESS, or unset that.",
    )
