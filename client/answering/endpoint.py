"""Flower's message handlers of a site: hand a request to the trainer, pack the answer.

A trainer in this process gets the request unpacked; one in a process of its own gets its bytes,
unopened. Nothing but a packed :class:`~lorica.common.wire.messages.Reply` goes back: Flower would
send the text of an exception to the coordinator, so every exception becomes a refusal with a
public reason, and its details go to the site's own log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from lorica.client.answering.protocol import Forwarder, Trainer
from lorica.common.errors import Code, LoricaError, is_failure
from lorica.common.machine.logs import log_context
from lorica.common.wire.messages import (
    Reply,
    Request,
    is_refusal,
    named_in,
    pack_reply,
    record_from_bytes,
    record_to_bytes,
    refusal,
    unpack_request,
)

__all__ = ["answer", "installed_trainer", "is_refusal", "make_client_app"]

T = TypeVar("T")

TrainerOf = Callable[[Context], Trainer | Forwarder]
"""Finds the trainer of the node that a message reached."""

PROVIDERS = "lorica.trainers"
"""Entry-point group: name = the node_config key that a provider serves, value = a TrainerOf."""

_log = logging.getLogger("lorica.site")


def make_client_app(trainer_of: TrainerOf) -> ClientApp:
    """A ClientApp whose messages are answered by the trainer that ``trainer_of`` finds."""
    app = ClientApp()

    def answering(method: str) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            content = answer(method, message.content, lambda: trainer_of(context))
            return Message(content, reply_to=message)

        return handle

    app.query("capabilities")(answering("capabilities"))
    app.train()(answering("train"))
    app.evaluate()(answering("evaluate"))
    return app


def answer(method: str, content: RecordDict, find: Callable[[], Trainer | Forwarder]) -> RecordDict:
    """The packed reply of a trainer's ``method`` to a packed request; never raises."""
    with log_context(site="") as logged:
        try:
            trainer = find()
            if isinstance(trainer, Forwarder):
                return _forwarded(trainer, method, content)
            logged["site"] = trainer.site
            request = unpack_request(content)
            logged |= {"run": request.run, "round": request.round}
            reply: Reply = getattr(trainer, method)(request)
            return pack_reply(reply)
        except BaseException as error:  # its text must not reach the coordinator
            if not is_failure(error):
                raise
            named = named_in(content)
            return pack_reply(_refused(method, error, *named, str(logged["site"])))


def answered(trainer: Trainer, method: str, request: Request, run: Callable[[], T]) -> T | Reply:
    """What ``run`` gives for a request that did not travel, or the refusal that its exception
    becomes; never raises."""
    with log_context(site=trainer.site, run=request.run, round=request.round):
        try:
            return run()
        except BaseException as error:  # as of a request that travelled
            if not is_failure(error):
                raise
            plan = request.plan
            return _refused(method, error, plan.fingerprint, request.round, trainer.site)


def _refused(method: str, error: BaseException, fingerprint: str, round: int, site: str) -> Reply:
    """The refusal that an exception becomes; its details go to the site's own log."""
    known = isinstance(error, LoricaError)
    _log.warning("refused %s: %s", method, error, exc_info=None if known else error)
    return refusal(error, fingerprint=fingerprint, round=round, site=site)


def _forwarded(forwarder: Forwarder, method: str, content: RecordDict) -> RecordDict:
    packed = record_to_bytes(content)
    reply = forwarder.forward(method, packed)
    return record_from_bytes(reply)


def installed_trainer(context: Context) -> Trainer | Forwarder:
    """The trainer of this node, by the first provider whose key is in the node's config.

    Providers are entry points, so that this package needs to know neither simulations nor
    sockets.

    Raises:
        LoricaError: LOR-505 when no provider serves the node.
    """
    for point in entry_points(group=PROVIDERS):
        if point.name in context.node_config:
            provider: TrainerOf = point.load()
            return provider(context)
    raise LoricaError(
        Code.NO_TRAINER,
        "The node's config names no trainer; known keys are: "
        f"{', '.join(point.name for point in entry_points(group=PROVIDERS))}.",
    )
