"""What a coordinator knows of a site before it asks it anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

MOST_UNITS = 10_000_000
"""Units that a site is believed to have at most, unless the coordinator's settings say more."""


@dataclass(frozen=True)
class KnownSite:
    """A registered site."""

    name: str
    public_key: str
    """The key that it signs replies with, a line in OpenSSH form."""


class Directory(Protocol):
    """Binds nodes to registered sites."""

    def sites(self) -> dict[int, KnownSite]:
        """The registered site of every node that has one."""
        ...
