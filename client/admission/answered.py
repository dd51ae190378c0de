"""Requests that were answered already: a signed request is good for one answer.

Formal statement:
    Of one signed request (its coordinator and nonce) at most one reply leaves the trainer, over
    restarts: the nonce is written durably before the reply is given out, and kept for as long as
    the request's time would let it pass (``policy.request_hours``). Whoever recorded a request can
    so do nothing with it, not even have the stored reply sent again.

A request that was in hand when the trainer died was not answered, and may come again as it is.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import (
    append_line,
    create_atomically,
    storage_errors,
    write_atomically,
)
from lorica.common.wire.messages import Request

_TIDY = 10_000  # lines between looks for what is too old


class Answered:
    """What was answered, in a file beside the ledger."""

    def __init__(
        self,
        file: Path | None,
        hours: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            file: where it is kept; None keeps it for this process's lifetime.
            hours: how far a request's time may be from the clock's; inf: any.
            clock: seconds since 1970 in UTC.

        Raises:
            LoricaError: LOR-409 the file is damaged, LOR-60x.
        """
        self._file, self._seconds, self._clock = file, hours * 3600, clock
        self._times = self._read()
        self._tidy()

    def check(self, request: Request) -> None:
        """Return if the request was not answered yet. Raises LOR-513."""
        if _key(request) in self._times:
            raise LoricaError(
                Code.REQUEST_REPLAYED,
                f"A request of run {request.run!r:.50}, round {request.round}, came again after it "
                "was answered.",
            )

    def note(self, request: Request) -> None:
        """From now on it was answered. Raises LOR-60x."""
        if self._file is not None:
            if not self._file.exists():
                create_atomically(self._file, b"", mode=0o600)
            append_line(self._file, f"{request.time} {_key(request)}")
        self._times[_key(request)] = request.time
        if len(self._times) % _TIDY == 0:
            self._tidy()

    def _read(self) -> dict[str, int]:
        if self._file is None or not self._file.exists():
            return {}
        with storage_errors(self._file):
            lines = self._file.read_text(encoding="ascii", errors="replace").splitlines()
        try:
            return {key: int(at) for at, key in (line.split(" ") for line in lines)}
        except ValueError as error:
            raise LoricaError(
                Code.SITE_CONFIG,
                f"{self._file} is damaged: which requests were answered is not known.",
                mend="Remove it: requests of the last policy.request_hours could then be sent "
                "again by whoever recorded them, and get their stored replies.",
            ) from error

    def _tidy(self) -> None:
        oldest = self._clock() - self._seconds
        kept = {key: at for key, at in self._times.items() if at >= oldest or math.isinf(oldest)}
        if len(kept) < len(self._times) and self._file is not None:
            text = "".join(f"{at} {key}\n" for key, at in kept.items())
            write_atomically(self._file, text, mode=0o600)
        self._times = kept


def _key(request: Request) -> str:
    return hashlib.sha256(f"{request.coordinator} {request.nonce}".encode()).hexdigest()[:32]
