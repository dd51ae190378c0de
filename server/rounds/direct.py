"""Asking sites that live beside the coordinator, in one process or its workers: nothing travels.

For simulations. Requests and replies are those that would travel, with the same adapters in the
same bytes; what is left out is packing them into messages and back. Screening, charges and
refusals are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Protocol, runtime_checkable

from lorica.common.wire.messages import Kind, Reply, Request, name_shown
from lorica.server.rounds.exchange import Answer


@runtime_checkable
class DirectGrid(Protocol):
    """A grid whose nodes take a request as it is."""

    def ask(
        self, requests: Iterable[tuple[int, Request]], kind: Kind
    ) -> Iterator[tuple[int, Reply]]:
        """Every node's reply to its request, in their order; computed ahead only as far as the
        replies are certain to be wanted."""
        ...


def exchange_directly(
    grid: DirectGrid,
    nodes: Iterable[int],
    request_to: Callable[[int], Request],
    kind: Kind,
    stop: Callable[[], None],
) -> Iterator[Answer]:
    """As of :func:`~lorica.server.rounds.exchange.exchange`, of nodes that always answer.

    Args:
        grid: reaches the nodes.
        nodes: their ids.
        request_to: the request to a node; what is the same for several may be one object.
        kind: what is asked.
        stop: called between answers; what it raises ends the exchange.
    """
    begun = time.monotonic()
    for node, reply in grid.ask(((node, request_to(node)) for node in nodes), kind):
        shown = name_shown(reply.site)
        taken = reply if shown == reply.site else replace(reply, site=shown)
        yield Answer(node, "reply", time.monotonic() - begun, reply=taken)
        stop()
