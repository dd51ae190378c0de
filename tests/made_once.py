"""Folders that many tests need and some change: made once in a process, then copied."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec

P = ParamSpec("P")
Make = Callable[Concatenate[Path, P], Path]


def made_once(make: Make[P]) -> Make[P]:
    """``make(folder, …)``, which writes the same files into any folder, called once for each
    choice of its other arguments; later folders are copies, so that a test may change its own."""

    @functools.cache
    def original(*args: P.args, **kwargs: P.kwargs) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="lorica-made-"))
        folder.chmod(0o755)  # as any other, which copies become
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return make(folder, *args, **kwargs)

    @functools.wraps(make)
    def copied(folder: Path, *args: P.args, **kwargs: P.kwargs) -> Path:
        shutil.copytree(original(*args, **kwargs), folder, dirs_exist_ok=True)
        return folder

    return copied
