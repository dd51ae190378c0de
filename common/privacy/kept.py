"""Noise that was calibrated before, kept on the disk by what it was calibrated for: simulations ask
for the same again and again, and a search takes several times as long as looking at its result.

Formal statement:
    *Nothing rests on these files.* They are read in processes that turn them on
    (:func:`keep_calibrations`: ``lorica simulate`` and ``lorica sweep``); a site's trainer never
    does, and works out its noise itself. And where they are read, a σ is used only if the
    accountant of record, asked once, finds that it keeps the budget and comes as near to it as a
    search would: whoever changes a file gets at most noise that is enough. What a ledger charges
    follows from the σ that was used, and from no file.

Files are found by a hash of all parameters and of the code that they depend on: this folder's
modules and the versions of the packages that compute. One that is damaged, or of somebody else, is
passed over and written anew, under a temporary name that is then renamed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from lorica.common.errors import LoricaError
from lorica.common.machine.files import make_private_folder, write_atomically

_NEAREST = 1e-3  # relative: how far below its budget the ε of a σ may be that a search has found
_MOST_BYTES = 1 << 16
_PACKAGES = ("dp-accounting", "numpy", "scipy")


class _Kept:
    """Where they are kept; None: nowhere."""

    folder: Path | None = None


def keep_calibrations(folder: Path | None) -> None:
    """Keep what is calibrated from now on in a folder, and use what it holds; None: no more."""
    _Kept.folder = folder


def recalled(
    what: str,
    parameters: object,
    budget: float,
    spent: Callable[[float], float],
    search: Callable[[], float],
) -> float:
    """What ``search`` gives, or gave before.

    Args:
        what: is searched for.
        parameters: all that it depends on; their repr tells them apart.
        budget: ε in nats.
        spent: ε of a figure, by the accountant of record.
        search: finds the figure.
    """
    folder = _Kept.folder
    if folder is None or not 0 < budget < math.inf:
        return search()
    key = json.dumps([what, repr(parameters), _code()])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    found = _read(path, key)
    if found is not None and _near(found, budget, spent):
        return found
    found = search()
    with contextlib.suppress(OSError, LoricaError):  # a full disk stops no run
        make_private_folder(folder)
        write_atomically(path, json.dumps({"key": key, "value": found.hex()}))
    return found


def _near(found: float, budget: float, spent: Callable[[float], float]) -> bool:
    """Whether a figure keeps the budget and comes near to it."""
    try:
        return budget * (1 - _NEAREST) <= spent(found) <= budget
    except (ValueError, ArithmeticError, LoricaError):  # of no mechanism that there is
        return False


def _read(path: Path, key: str) -> float | None:
    """The figure in a regular file of this user that says that it is of ``key``."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
                return None
            content = json.loads(file.read(_MOST_BYTES))
        found = float.fromhex(content["value"]) if content["key"] == key else math.nan
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return found if 0 < found < math.inf else None


@functools.cache
def _code() -> str:
    """What the same parameters may be calibrated to another figure by."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return " ".join([digest.hexdigest(), *(f"{name} {version(name)}" for name in _PACKAGES)])
