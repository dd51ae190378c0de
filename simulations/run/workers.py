"""Virtual sites on several cores: worker processes that share what was loaded before they began.

Workers are forked when the backbone, the records and the caches are in memory, and read them where
they lie: nothing is loaded or computed twice. Every site belongs to one worker for good, because
its ledger and its model live there. What is sent and returned is what a grid sends and gets,
serialised; the lines that sites log come with their replies and are logged here.

A worker computes with so many threads that all workers together use those of this process. Results
are those of one process with as many threads a site, to the last bit; another number of threads
adds float32 numbers up in another order.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.forks import begin_child, can_fork, forking
from lorica.common.plan import RunPlan
from lorica.simulations.run.lines import KeptLines

_WAITING = 4
"""Replies per worker that may wait to be pulled before it gets no more to do: bounds memory."""

_LOOK_SECONDS = 0.2


class Nodes(Protocol):
    """What a worker runs."""

    def answer(self, content: Any) -> Any:
        """What comes back for what was sent; a pipe between processes takes both."""
        ...


class Workers(Protocol):
    """Processes that have the sites and answer for them."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def owner(self, partition: int) -> int:
        """The one that has a site."""
        ...

    def ask(self, identity: str, partition: int, content: Any) -> None:
        """Give what is asked of a site, or of several that begin with it, to whoever has them."""
        ...

    def reply(self, identity: str) -> Any:
        """What came back for what was asked, once it is there.

        Raises:
            LoricaError: LOR-511 when a worker died.
        """
        ...

    def forget(self, identities: Iterable[str]) -> None:
        """Take back what was asked and is wanted no more."""
        ...


def worker_count(plan: RunPlan, sites: int) -> int:
    """How many workers a simulation of so many sites gets; 1 means none but this process.

    Raises:
        LoricaError: LOR-103 when the plan asks for some where there can be none.
    """
    asked = plan.simulation.workers
    if asked == 1 or plan.simulation.engine != "in-process" or plan.rounds.over_provision:
        return 1  # with over-provision, sites that the round does not wait for must not run
    if not can_fork():
        if asked:
            raise LoricaError(
                Code.PLAN_BAD_VALUE,
                f"simulation.workers is {asked}, but this system ({sys.platform}) cannot fork "
                "processes that share a loaded model.",
                mend='Set simulation.workers to 1, or use simulation.engine = "ray".',
            )
        return 1
    return max(1, min(asked or min(torch.get_num_threads(), cores()), sites))


def threads_of_each(workers: int) -> int:
    """Threads that each of so many workers computes with."""
    return max(1, torch.get_num_threads() // workers)


@contextlib.contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Compute with so many threads within the block: what is computed by another number may have
    other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shared_out(costs: Sequence[float], workers: int) -> list[int]:
    """The worker of every site: each, the costliest first, goes to the one with least to do."""
    loads = [(0.0, worker) for worker in range(workers)]
    found = [0] * len(costs)
    for site in sorted(range(len(costs)), key=lambda site: -costs[site]):
        load, worker = heapq.heappop(loads)
        found[site] = worker
        heapq.heappush(loads, (load + costs[site], worker))
    return found


class SiteWorkers:
    """Forked processes that answer for virtual nodes; a context manager around the run."""

    def __init__(self, nodes: Nodes, names: Sequence[str], owners: Sequence[int]) -> None:
        """
        Args:
            nodes: all virtual nodes.
            names: of the sites, by partition.
            owners: worker of every site, from 0 without gaps.
        """
        self._nodes, self._names, self._owners = nodes, list(names), list(owners)
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._queues: list[dict[str, tuple[int, Any]]] = [{} for _ in range(max(owners) + 1)]
        self._busy: dict[int, tuple[str, int]] = {}  # worker -> message and partition
        self._done: dict[str, Any] = {}
        self._unwanted: set[str] = set()
        self._worker_of: dict[str, int] = {}

    def __enter__(self) -> SiteWorkers:
        threads = threads_of_each(len(self._queues))
        with forking() as context:
            for worker in range(len(self._queues)):
                here, there = context.Pipe()
                process = context.Process(
                    target=_serve,
                    args=(there, [*self._connections, here], self._nodes, threads),
                    name=f"lorica sites {worker + 1}",
                    daemon=True,
                )
                process.start()
                there.close()
                self._connections.append(here)
                self._processes.append(process)
        return self

    def __exit__(self, *_: object) -> None:
        for worker, connection in enumerate(self._connections):
            connection.close()  # an idle worker ends by itself
            if worker in self._busy:
                self._processes[worker].terminate()
        for process in self._processes:
            process.join()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._queues)

    def owner(self, partition: int) -> int:
        """The worker of a site."""
        return self._owners[partition]

    def places(self) -> list[int]:
        """A site of every worker."""
        return [self._owners.index(worker) for worker in range(self.count)]

    def ask(self, identity: str, partition: int, content: Any) -> None:
        """Give what is asked of a site, or of several that begin with it, to their worker."""
        worker = self._owners[partition]
        self._worker_of[identity] = worker
        self._queues[worker][identity] = partition, content
        self._go_on(worker, "")

    def reply(self, identity: str) -> Any:
        """What came back for what was asked, once it is there.

        Raises:
            LoricaError: LOR-511 when a worker died.
        """
        self.first([identity])
        del self._worker_of[identity]
        return self._done.pop(identity)

    def first(self, identities: Sequence[str], look: Callable[[], None] | None = None) -> str:
        """Of what was asked, one whose reply is there; waits until there is one.

        Args:
            identities: as they were asked, at least one; the first is sent before all else.
            look: called several times a second meanwhile.

        Raises:
            LoricaError: LOR-511 when a worker died.
        """
        while True:
            for identity in identities:
                if identity in self._done:
                    return identity
            for worker in range(len(self._queues)):
                self._go_on(worker, identities[0])
            busy = [self._connections[worker] for worker in self._busy]
            for ready in wait(busy, _LOOK_SECONDS if look else None):
                self._take(self._connections.index(ready))  # type: ignore[arg-type]
            if look:
                look()

    def forget(self, identities: Iterable[str]) -> None:
        """Take back what was asked and is wanted no more: what has not begun never does, and what
        comes of the rest is thrown away. Kept, it would count among the replies that wait."""
        for identity in identities:
            worker = self._worker_of.pop(identity, None)
            if identity in self._done:
                del self._done[identity]
            elif worker is not None and self._queues[worker].pop(identity, None) is None:
                self._unwanted.add(identity)

    def _go_on(self, worker: int, wanted: str) -> None:
        """Send an idle worker its next message; ``wanted`` first, and that at any rate."""
        queue = self._queues[worker]
        if worker in self._busy or not queue:
            return
        identity = wanted if wanted in queue else next(iter(queue))
        if identity != wanted and len(self._done) >= _WAITING * len(self._queues):
            return
        partition, content = queue.pop(identity)
        self._busy[worker] = identity, partition
        try:
            self._connections[worker].send(content)
        except OSError:
            self._died(worker)

    def _take(self, worker: int) -> None:
        try:
            reply, lines = self._connections[worker].recv()
        except (EOFError, OSError):
            self._died(worker)
        identity, _ = self._busy.pop(worker)
        if identity in self._unwanted:
            self._unwanted.discard(identity)
        else:
            self._done[identity] = reply
        for line in lines:
            logging.getLogger(line.name).handle(line)

    def _died(self, worker: int) -> None:
        _, partition = self._busy.pop(worker)
        process = self._processes[worker]
        process.join()
        status = process.exitcode or 0
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited {status}"
        raise LoricaError(
            Code.WORKER_DIED,
            f"The worker process of site '{self._names[partition]}' {how} while the site worked.",
        )


@contextlib.contextmanager
def site_workers(
    nodes: Nodes, costs: Mapping[str, float], count: int
) -> Iterator[SiteWorkers | None]:
    """So many workers for these sites, or None where one process is enough.

    Args:
        nodes: the sites as nodes, in the order of ``costs``.
        costs: site -> about what it has to do, in any unit.
        count: as of :func:`worker_count`.
    """
    if count < 2:
        yield None
        return
    with SiteWorkers(nodes, list(costs), shared_out(list(costs.values()), count)) as workers:
        yield workers


def _serve(connection: Connection, others: list[Connection], nodes: Nodes, threads: int) -> None:
    """A worker: answer one message after the other until the connection is closed."""
    for other in others:
        other.close()  # else they stay open when the parent is gone
    begin_child(threads)
    lines = KeptLines()
    lines.take_over()
    while True:
        try:
            content = connection.recv()
        except (EOFError, OSError):
            return
        connection.send((nodes.answer(content), lines.take()))


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
