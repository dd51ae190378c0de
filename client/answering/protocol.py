"""What a trainer is, without what it needs: the thin ClientApp imports no torch."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from lorica.common.wire.messages import Reply, Request


class Trainer(Protocol):
    """Answers one site's requests in this process."""

    site: str
    """The site's public name."""

    def capabilities(self, request: Request) -> Reply:
        """Whether the site takes part in the request's plan; spends nothing."""
        ...

    def train(self, request: Request) -> Reply:
        """The site's update for one round."""
        ...

    def evaluate(self, request: Request) -> Reply:
        """Noised counts of the request's adapter on records set aside at the site."""
        ...


@runtime_checkable
class Forwarder(Protocol):
    """Passes requests on, unopened, to a trainer in another process."""

    def forward(self, method: str, content: bytes) -> bytes:
        """The serialised reply of the trainer's ``method`` to a serialised request."""
        ...
