"""A password from a variable or from a file that only its owner can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lorica.common.errors import Code, LoricaError


def password_of(where: str, root: Path) -> str:
    """The password that "env:NAME" or "file:PATH" names; empty for an empty ``where``.

    Raises:
        LoricaError: LOR-324 it is missing, empty, or others may read it. No message holds it.
    """
    if not where:
        return ""
    kind, _, name = where.partition(":")
    if kind == "env":
        found = os.environ.get(name, "")
        if not found:
            raise LoricaError(
                Code.DATA_CREDENTIALS, f"The environment variable {name} is not set, or empty."
            )
        return found
    return _from_file(root / Path(name))


def _from_file(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
                raise LoricaError(
                    Code.DATA_CREDENTIALS,
                    f"{path} is no plain file, or others may read it (its permissions are "
                    f"{stat.S_IMODE(status.st_mode):04o}).",
                    mend=f"chmod 600 {path}",
                )
            found = file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise LoricaError(Code.DATA_CREDENTIALS, f"{path} cannot be read: {said}.") from None
    if not found:
        raise LoricaError(Code.DATA_CREDENTIALS, f"{path} is empty.")
    return found
