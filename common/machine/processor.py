"""Which processor this is, as far as the bits of a computation may depend on it."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

_ABOUT = Path("/proc/cpuinfo")


@functools.cache
def processor() -> str:
    """Kind and model, in words."""
    model = platform.processor()
    if _ABOUT.is_file():
        lines = _ABOUT.read_text(encoding="utf-8", errors="replace").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = named[0] if named else model
    return f"{platform.machine()} {model}".strip()
