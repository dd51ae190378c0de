"""Flower's ``flower-supernode``, but prompt: no needless pause, and no reply that stays behind.

By itself Flower sleeps three seconds after every look at the coordinator that found no message,
which is most of what a short round takes. Here the pause grows with the time since the last
message: a tenth of it, at least 0.1 and at most Flower's own three seconds. So waiting adds at
most a tenth to a round, an idle site asks no more often than Flower's, and a fleet that waits for
slow peers does not crowd the coordinator.

Flower sends replies only after it received a message, and takes whatever reply is there for the
one. A reply too many (Flower makes one for a ClientApp that died, and the one that follows in its
place makes another) thus leaves each later reply behind until the next message comes; the last
would wait for ever. Here replies are also sent when no message came.

Where a message's contents are not there yet it looks again soon
(:mod:`lorica.common.wire.pulling`). Beside it a process stands by that each message's ClientApp
is split off from (:mod:`lorica.client.node.standby`); where it does not run, each starts anew, as
in Flower.

Nothing else changes. With a version of Flower whose parts have other names its own loop stays.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lorica.common.wire.pulling import pull_promptly

PROGRAM = "flower-supernode"
_SHORTEST, _SHARE = 0.1, 0.1
_REPLY_LOOK = 0.05  # seconds between looks for the ClientApp's reply, which is on this machine
_PULL, _PUSH = "_pull_and_store_message", "_push_messages"
_NO_RUN = 0  # what Flower's loop takes for the id of a run whose message came
_log = logging.getLogger("lorica.site")


class Prompt:
    """Stands for the module ``time`` in Flower's loop, and around its pull and push."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds, from anywhere."""
        self._clock, self._worked = clock, -float("inf")
        self._behind: Sequence[Any] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def pause(self, asked: float) -> float:
        """How long to sleep, in seconds, where Flower would sleep ``asked``."""
        if asked < 1:
            return min(asked, _REPLY_LOOK)
        return min(asked, max(_SHORTEST, _SHARE * (self._clock() - self._worked)))

    def sleep(self, seconds: float) -> None:
        """Sleep, but not longer than there is reason to."""
        time.sleep(self.pause(seconds))

    def pulling(self, pull: Callable[..., int | None]) -> Callable[..., int | None]:
        """Flower's pull; if nothing came but a reply waits, it says so as if something had come."""

        def pulled(*, state: Any, **named: Any) -> int | None:
            run = pull(state=state, **named)
            if run is None:
                self._behind = state.get_messages_legacy(is_reply=True)
                return _NO_RUN if self._behind else None
            return run

        return pulled

    def pushing(self, push: Callable[..., None]) -> Callable[..., None]:
        """Flower's push, which waits for a reply: for those that were found waiting it need not."""

        def pushed(*, state: Any, **named: Any) -> None:
            behind, self._behind = self._behind, ()
            try:
                push(state=_WithReplies(state, behind) if behind else state, **named)
            finally:
                self._worked = self._clock()

        return pushed


class _WithReplies:
    """A node's state that gives out these replies first; they were marked as given already."""

    def __init__(self, state: Any, replies: Sequence[Any]) -> None:
        self._state, self._replies = state, replies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_messages_legacy(self, **named: Any) -> Sequence[Any]:
        replies, self._replies = self._replies, ()
        return replies or self._state.get_messages_legacy(**named)


def put_in_place(loop: ModuleType, prompt: Prompt) -> bool:
    """Make Flower's loop prompt; False, and nothing changed, if it is not as known."""
    parts = [getattr(loop, name, None) for name in (_PULL, _PUSH)]
    if getattr(loop, "time", None) is not time or not all(callable(part) for part in parts):
        return False
    setattr(loop, "time", prompt)  # noqa: B010 - a module's attribute that mypy knows as a module
    setattr(loop, _PULL, prompt.pulling(getattr(loop, _PULL)))
    setattr(loop, _PUSH, prompt.pushing(getattr(loop, _PUSH)))
    return True


def stand_by(home: Path) -> subprocess.Popen[bytes]:
    """Start the process that stands by; it ends when its standard input closes, with this one.

    Args:
        home: Flower's, in the site's folder.
    """
    words = ("-P", "-m", "lorica.client.node.standby", str(home.parent), str(home))
    return subprocess.Popen([sys.executable, *words], stdin=subprocess.PIPE)


def main() -> None:
    """Program: the arguments of ``flower-supernode``."""
    if home := os.environ.get("FLWR_HOME"):
        stand_by(Path(home))
    sys.argv = [PROGRAM, *sys.argv[1:]]
    from flwr.supernode import start_client_internal as loop
    from flwr.supernode.cli import flower_supernode

    if not put_in_place(loop, Prompt()) or not pull_promptly():
        _log.warning("This Flower has pauses of a second and more, whatever goes on.")
    flower_supernode()


if __name__ == "__main__":
    main()
