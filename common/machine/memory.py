"""Hand memory that is no longer used back to the system."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from collections.abc import Callable
from typing import Any


def release_unused() -> None:
    """Return freed heap pages to the system, where the C library can (glibc); else do nothing.

    Activations of changing shapes leave glibc's heap full of holes: with ten virtual sites the
    process would hold twice what it uses.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], Any] | None:
    try:
        return ctypes.CDLL(ctypes.util.find_library("c")).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
