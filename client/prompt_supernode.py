"""Flower's ``flower-supernode``, but quicker to look for work while a run is going on.

By itself Flower sleeps three seconds after every look at the coordinator that found no message,
which is most of what a short round takes. Here the pause grows with the time since the last
message: a tenth of it, at least 0.2 and at most Flower's own three seconds. So waiting adds at
most a tenth to a round, an idle site asks no more often than Flower's, and a fleet that waits for
slow peers does not crowd the coordinator.

Only pauses change. With a version of Flower whose parts have other names its own stay.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

PROGRAM = "flower-supernode"
_SHORTEST, _SHARE = 0.2, 0.1
_REPLY_LOOK = 0.1  # seconds between looks for the ClientApp's reply, which is on this machine
_log = logging.getLogger("lorica.site")


class Pauses:
    """Stands for the module ``time`` in Flower's loop: the same, but for how long it sleeps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds, from anywhere."""
        self._clock, self._worked = clock, -float("inf")

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

    def after(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, which handles a message, with a note of when it was done."""

        def done(*given: Any, **named: Any) -> Any:
            try:
                return work(*given, **named)
            finally:
                self._worked = self._clock()

        return done


def put_in_place(loop: ModuleType, pauses: Pauses) -> bool:
    """Make Flower's loop sleep by ``pauses``; False, and nothing changed, if it is not as known."""
    if getattr(loop, "time", None) is not time or not callable(
        getattr(loop, "_push_messages", None)
    ):
        return False
    loop.time = pauses  # type: ignore[attr-defined]
    loop._push_messages = pauses.after(loop._push_messages)  # type: ignore[attr-defined]
    return True


def main() -> None:
    """Program: the arguments of ``flower-supernode``."""
    sys.argv = [PROGRAM, *sys.argv[1:]]
    from flwr.supernode import start_client_internal as loop
    from flwr.supernode.cli import flower_supernode

    if not put_in_place(loop, Pauses()):
        _log.warning(
            "This version of Flower looks for work every three seconds: rounds are slower."
        )
    flower_supernode()


if __name__ == "__main__":
    main()
