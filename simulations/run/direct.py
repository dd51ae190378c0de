"""Sites of this machine that take requests as they are: no message is packed for them.

The plan is parsed and hashed once, a request is one object for all sites that get it, and what is
computed for many sites at a time is (:mod:`lorica.client.training.together`). Replies, charges,
refusals and what is logged are those of real messages, to the bit.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

from flwr.clientapp import ClientApp

from lorica.client.answering.endpoint import answered
from lorica.client.answering.protocol import Trainer
from lorica.client.training.together import train_together
from lorica.common.plan import RunPlan
from lorica.common.wire.messages import CAPABILITIES, EVALUATE, TRAIN, Kind, Reply, Request
from lorica.simulations.run.grid import InProcessGrid
from lorica.simulations.run.virtual import InOrder

if TYPE_CHECKING:
    from lorica.simulations.run.workers import Workers

_TOGETHER = 64
"""Sites that are asked at a time, for each process; bounds the updates in memory."""

_METHODS = {CAPABILITIES: "capabilities", TRAIN: "train", EVALUATE: "evaluate"}

Asked = tuple[int, Request]
"""A node and the request to it."""


class DirectNodes:
    """The sites of virtual nodes; node i + 1 is partition i."""

    def __init__(self, sites: InOrder[Trainer]) -> None:
        self.sites = sites
        self._plans: dict[str, RunPlan] = {}

    def replies(self, kind: Kind, request: Request, partitions: Sequence[int]) -> list[Reply]:
        """The replies of these partitions to one request."""
        sites = [self.sites[partition] for partition in partitions]
        if kind == TRAIN:
            return train_together(sites, request)
        method = _METHODS[kind]
        return [
            answered(site, method, request, partial(getattr(site, method), request))
            for site in sites
        ]

    def answer(self, content: tuple[Kind, Request, list[int]]) -> list[Reply]:
        """As :meth:`replies`; for workers, to whom a request comes as a copy."""
        kind, request, partitions = content
        known = self._plans.setdefault(request.plan.fingerprint, request.plan)
        return self.replies(kind, replace(request, plan=known), partitions)


class DirectInProcessGrid(InProcessGrid):
    """A grid that gives requests to the sites as they are
    (:class:`lorica.server.rounds.direct.DirectGrid`)."""

    def __init__(
        self,
        app: ClientApp,
        nodes: DirectNodes,
        workers: Workers | None = None,
        *,
        ahead: bool = True,
    ) -> None:
        """
        Args:
            app: answers messages, should any be pushed.
            nodes: the sites.
            workers: processes that run the sites; None runs them in this one.
            ahead: whether sites may run before their replies are taken; not where a round may end
                before all have answered.
        """
        super().__init__(app, len(nodes.sites), workers)
        self._direct, self._ahead = nodes, ahead

    def ask(self, requests: Iterable[Asked], kind: Kind) -> Iterator[tuple[int, Reply]]:
        """Replies in the order of the requests, some of them computed at a time."""
        if self._workers is not None:
            yield from self._of_workers(requests, kind, self._workers)
            return
        for request, nodes in _windows(requests, _TOGETHER if self._ahead else 1):
            partitions = [node - 1 for node in nodes]
            yield from zip(nodes, self._direct.replies(kind, request, partitions), strict=True)

    def _of_workers(
        self, requests: Iterable[Asked], kind: Kind, workers: Workers
    ) -> Iterator[tuple[int, Reply]]:
        under_way: deque[tuple[list[int], list[int], list[str]]] = deque()
        try:
            for request, nodes in _windows(requests, _TOGETHER * workers.count):
                parts: dict[int, list[int]] = {}
                for node in nodes:
                    parts.setdefault(workers.owner(node - 1), []).append(node - 1)
                asked = []
                for partitions in parts.values():
                    asked.append(str(uuid4()))
                    workers.ask(asked[-1], partitions[0], (kind, request, partitions))
                found = [partition + 1 for part in parts.values() for partition in part]
                under_way.append((nodes, found, asked))
                if len(under_way) > 1:
                    yield from _in_order(workers, *under_way.popleft())
            while under_way:
                yield from _in_order(workers, *under_way.popleft())
        finally:  # who asks may have heard enough
            for _, _, asked in under_way:
                workers.forget(asked)


def _in_order(
    workers: Workers, nodes: list[int], found: list[int], asked: list[str]
) -> Iterator[tuple[int, Reply]]:
    """The replies of one window in the order of ``nodes``; they come in that of ``found``."""
    replies = [reply for identity in asked for reply in workers.reply(identity)]
    of = dict(zip(found, replies, strict=True))
    yield from ((node, of[node]) for node in nodes)


def _windows(requests: Iterable[Asked], most: int) -> Iterator[tuple[Request, list[int]]]:
    """Nodes in a row that get one and the same request, at most so many at a time."""
    for _, run in itertools.groupby(requests, key=lambda asked: id(asked[1])):
        while part := list(itertools.islice(run, most)):
            yield part[0][1], [node for node, _ in part]
