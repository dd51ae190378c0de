"""Settings that a trainer does not start with, and doors that it closes before it opens records.

Only what every Python has is imported here: it runs before the network is left.
"""

from __future__ import annotations

import ctypes
import resource
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lorica.common.data.kinds import is_path
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from lorica.client.config.site import SiteConfig

_SET_DUMPABLE = 4  # linux/prctl.h


def require_safe(path: Path, config: SiteConfig) -> None:
    """Return if nobody but the site's own users may change what its guarantee rests on.

    Args:
        path: site.toml.
        config: what it says.

    Raises:
        LoricaError: LOR-409 a file or folder is open to everybody.
    """
    for what, found in _watched(path.absolute(), config):
        try:
            status = found.stat()
        except OSError:  # not there, or not to be read: said by whoever opens it
            continue
        mode = status.st_mode
        if not mode & stat.S_IWOTH or (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
            continue
        raise LoricaError(
            Code.SITE_CONFIG,
            f"{found} ({what}) has mode {stat.S_IMODE(mode):04o}: every user of this machine may "
            "change it, so nothing that the site promises of its records would hold.",
            mend=f"chmod o-w {found}",
        )


def close_doors() -> None:
    """No core dumps, and no other process of the same user may read this one's memory.

    After the network is left: a process that is not dumpable cannot map its own users.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_DUMPABLE, 0, 0, 0, 0)


def _watched(path: Path, config: SiteConfig) -> Iterator[tuple[str, Path]]:
    root = path.parent
    yield "site.toml", path
    yield "the folder of site.toml", root
    ledger = root / config.ledger.path
    yield "the privacy ledger", ledger
    yield "the ledger's anchor", ledger.with_name(ledger.name + ".anchor")
    yield "the ledger's folder", ledger.parent
    yield "the approved code", root / "approved"
    if config.data.cache:
        yield "the cache of the records", root / config.data.cache
    if is_path(config.data.source):
        records = root / config.data.source
        yield "the records", records
        yield "the folder of the records", records.parent
        if records.is_dir():
            for found in sorted(records.iterdir()):
                yield "records", found
