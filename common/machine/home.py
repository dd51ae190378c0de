"""Where Lorica keeps what belongs to a user of this machine."""

from __future__ import annotations

import os
from pathlib import Path

HOME_VARIABLE = "LORICA_HOME"
"""Environment variable: the folder of everything that Lorica keeps for this user."""
STORE_VARIABLE = "LORICA_STORE"
"""Environment variable: the run store's URL, a path, or "none" for no store."""


def home() -> Path:
    """The folder that LORICA_HOME names, else ~/.local/share/lorica."""
    given = os.environ.get(HOME_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".local" / "share" / "lorica"
